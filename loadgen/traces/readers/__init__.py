"""One module a file format; each raises ConfigError with file, line and field for a row that it cannot read."""
