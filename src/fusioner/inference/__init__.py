"""From a photograph and names to a Segmentation."""
