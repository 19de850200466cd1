"""One folder is one process: `python -m services.<name>`. Services know each other by message only."""
