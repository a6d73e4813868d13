"""The embedded default model's weights, with their card and NOTICE."""
