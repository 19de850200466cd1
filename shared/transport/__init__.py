"""Bulk KV between two workers: the transport port with its UCX, TCP and in-memory adapters."""
