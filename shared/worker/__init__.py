"""The one loop that every worker runs: it can do both phases; placement decides what it is given."""
