"""The page and the HTTP API: one process, one model, nothing written to disk."""
