"""Everything that crosses a process boundary: messages, their encoding, and the streams they travel on. Pure."""
