"""The trained part: fusion, decoder, head, and their assembly. Knows nothing of images, labels or datasets."""
