"""Batches: nested arrays, or None, whose leading axis is the samples."""

import keras

from tensorflow_ranger.backend import arrays
from tensorflow_ranger.backend.phases import BatchOutputs


def first(data):
    """Return the first array in `data`."""
    return next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)


def count(data):
    """Return the number of samples in `data`, or None where a graph does not know it."""
    return first(data).shape[0]


def has_sparse(data):
    """Return whether an array in `data` is sparse."""
    return any(arrays.is_sparse(leaf) for leaf in keras.tree.flatten(data))


def cut(data, start, size):
    """Return the samples of `data` from `start` on, `size` at most."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else arrays.rows(leaf, start, size), data
    )


def resized(data, size):
    """Return `size` samples of `data`: the first ones, or the same again where there are fewer."""
    copies = -(-size // count(data))
    if copies > 1:
        data = keras.tree.map_structure(
            lambda leaf: None if leaf is None else keras.ops.concatenate([leaf] * copies), data
        )
    return cut(data, 0, size)


def joined_outputs(parts):
    """Return the `BatchOutputs` of a batch from those of its micro-batches."""
    rows, added = zip(*parts, strict=True)
    return BatchOutputs(
        [keras.ops.concatenate(each) for each in zip(*rows, strict=True)],
        [sum(each) for each in zip(*added, strict=True)],
    )


def split(data, size):
    """Return the micro-batches of `data`: `size` samples each, and what remains."""
    return [cut(data, start, size) for start in range(0, count(data), size)]
