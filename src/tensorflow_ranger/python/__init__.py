"""The founding import path."""
