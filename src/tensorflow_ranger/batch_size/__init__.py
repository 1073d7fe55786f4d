"""How many samples fit, and how many are fastest."""
