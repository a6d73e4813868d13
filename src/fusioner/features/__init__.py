"""The cache of frozen features."""
