"""Bookkeeping of the KV cache: who owns which block, and how a prompt is cut into slices. Pure."""
