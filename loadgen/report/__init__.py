"""How it is told: live progress, tables, JSON, one self-contained web page."""
