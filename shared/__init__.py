"""What every service shares: wire, pure policies, ports with their adapters, and the worker loop."""
