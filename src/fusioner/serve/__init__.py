"""The HTTP API and the page: one process, one model, nothing written to disk."""
