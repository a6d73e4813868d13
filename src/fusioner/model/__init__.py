"""The trained network and its parts, independent of images, labels and data sets."""
