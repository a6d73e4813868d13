"""Weights of the bundled encoders and the bundled model, with their card and NOTICE."""

DEFAULT_MODEL = "default.safetensors"
