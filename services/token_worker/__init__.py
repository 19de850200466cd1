"""A worker whose home is the token pool."""
