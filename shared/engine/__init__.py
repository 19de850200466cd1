"""The engine port and its adapters: transformers (hf), a deterministic fake, and a paced fake."""
