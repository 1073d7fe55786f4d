"""Checks of arguments and optimizers that several rooms make."""
