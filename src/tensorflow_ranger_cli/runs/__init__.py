"""A training run: its settings, its files, what trains it and what measures it."""
