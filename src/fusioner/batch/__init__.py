"""Batch runs: an input cut into shards, each segmented exactly once, by processes of this machine or by Ray."""
