"""Data sets: images with masks and class names, one file a set."""
