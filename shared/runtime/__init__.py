"""What a process needs around its work: configuration, logging, task supervision."""
