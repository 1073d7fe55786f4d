"""Keras optimizers composed from windows and rules."""
