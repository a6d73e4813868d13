"""Many images: an input cut into shards, each done exactly once, by processes here or by Ray on a cluster."""
