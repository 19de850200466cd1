"""Frames between two processes: the link port with its TCP and in-memory adapters."""
