"""Adapters to tools that annotate and inspect data sets."""
