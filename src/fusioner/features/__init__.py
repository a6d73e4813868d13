"""Frozen image features, encoded once per image and view and read from a cache afterwards."""
