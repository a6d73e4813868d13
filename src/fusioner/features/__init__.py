"""The cache of frozen features: every image, and light views of it, encoded once and read from then on.

Start at `fill.fill`, which encodes what is missing and gives a `source.CachedSource`; `source.LiveSource` gives the
same tokens without a cache, and `cache.FeatureCache.tokens` those of one file on demand. `upkeep` looks after a cache.
"""
