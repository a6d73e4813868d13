"""Frozen image and text encoders, and the registry of their names."""
