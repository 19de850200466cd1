"""Bookkeeping of the KV cache: who owns which block, how large a slice is, how long a promise holds. Pure."""
