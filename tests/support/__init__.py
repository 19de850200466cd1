"""What tests share: samples of messages, a whole mesh in one process."""
