"""A worker whose home is the prompt pool."""
