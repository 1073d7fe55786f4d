"""Time and memory of accumulation, side by side with its alternatives: ``make bench``."""
