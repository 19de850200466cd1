"""Queues and announcements: the broker port with its Redis and in-memory adapters."""
