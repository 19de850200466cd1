"""The load generator: production traces replayed honestly, measured right, compared fairly."""
