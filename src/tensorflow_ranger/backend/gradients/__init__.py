"""Sums of gradients over the micro-batches of a batch, for the active Keras backend alone."""

import importlib

import keras

_active = importlib.import_module(f"{__name__}.{keras.config.backend()}")

accumulate = _active.accumulate
gradient = _active.gradient
leaves = _active.leaves
map_leaves = _active.map_leaves
