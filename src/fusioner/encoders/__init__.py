"""Frozen image and text encoders behind two Protocols, and the zoo of their names."""
