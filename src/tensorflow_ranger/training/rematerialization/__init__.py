"""Rematerialization: forward passes of which the backward pass repeats parts."""
