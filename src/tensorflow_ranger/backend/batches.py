"""Batches: nested arrays, or None, whose leading axis is the samples."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays
from tensorflow_ranger.backend.phases import BatchOutputs


def mapped(function, data) -> Any:
    """Return nested `data` with ``function(leaf)`` in place of each array; None stays None."""
    return keras.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), data)


def first(data):
    """Return the first array in `data`."""
    return next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)


def count(data):
    """Return the number of samples in `data`, or None where a graph does not know it."""
    return first(data).shape[0]


def rows_of(x):
    """Return the number of samples in `x`, a tensor where a graph does not know it."""
    leaf = first(x)
    return ops.shape(leaf)[0] if leaf.shape[0] is None else leaf.shape[0]


def has_sparse(data):
    """Return whether an array in `data` is sparse."""
    return any(arrays.is_sparse(leaf) for leaf in keras.tree.flatten(data))


def cut(data, start, size):
    """Return the samples of `data` from `start` on, `size` at most."""
    return mapped(lambda leaf: arrays.rows(leaf, start, size), data)


def resized(data, size):
    """Return `size` samples of `data`: the first ones, or the same again where there are fewer."""
    copies = -(-size // count(data))
    if copies > 1:
        data = mapped(lambda leaf: keras.ops.concatenate([leaf] * copies), data)
    return cut(data, 0, size)


def at(data, places):
    """Return the samples of `data` at these places, an array of integers."""
    return mapped(lambda leaf: arrays.samples_at(leaf, places), data)


def trimmed(leaf, length):
    """Return the first `length` steps of each sample of `leaf`."""
    return leaf[:, :length]


def in_order(leaves, places, steps=None):
    """Return the samples of several arrays as one array, each where it belongs.

    Args:
        leaves: List of arrays of shape ``(samples, ...)``.
        places: The place of each sample, one array after the other.
        steps: The size of the second axis, or None where arrays are of one size. Those of fewer
            steps are filled up with zeros.
    """
    if steps is not None:
        leaves = [arrays.filled(leaf, steps) for leaf in leaves]
    return arrays.samples_at(keras.ops.concatenate(leaves), np.argsort(places))


class Slice:
    """Which samples of a batch a micro-batch has: some that follow each other.

    Args:
        start: Place in the batch of the first.
        count: How many there are.
    """

    #: Places of the samples in the batch, or None where they follow the micro-batch before.
    places = None

    def __init__(self, start, count):
        self._start = start
        self._count = count
        self.stop = start + count

    def of(self, data):
        """Return the micro-batch of a batch."""
        return cut(data, self._start, self._count)

    def slopes_of(self, rows):
        """Return the micro-batch's part of ``Slopes.rows`` of the batch."""
        return cut(rows, self._start, self._count)

    def placed(self, state, first=0):
        """Return the `LoopState` that the micro-batch is handed.

        Args:
            state: `LoopState` after the micro-batches before.
            first: The place in the global batch of the first sample of this replica.
        """
        return state if self.places is None else state._replace(place=first + self.places)


class LoopedMicroBatch(NamedTuple):
    """A micro-batch that a loop within a step has cut."""

    data: Any  #: Tuple ``(x, y, sample_weight)``.
    slopes: Any  #: Its part of ``Slopes.rows``, or None.
    #: Array of its samples' places among those that the loop cuts, or None where they follow the
    #: micro-batch before.
    places: Any

    def begun(self, state, first):
        """Return the `LoopState` that it is handed; `first` is the place of the first of all."""
        return state if self.places is None else state._replace(place=self.places + first)

    def ended(self, state, first):
        """Return the `LoopState` that it hands on, of the same shapes for all."""
        return state if self.places is None else state._replace(place=first)


def slices(data, size, start=0, stops=()):
    """Return the `Slice` objects of `data`: `size` samples each, and what remains.

    Args:
        data: Nested arrays.
        size: Samples of a micro-batch.
        start: The sample to begin with.
        stops: Samples that no micro-batch reaches across.
    """
    found, samples = [], count(data)
    for stop in sorted({stop for stop in (*stops, samples) if stop > start}):
        found += [Slice(each, min(size, stop - each)) for each in range(start, stop, size)]
        start = stop
    return found


def joined_outputs(parts):
    """Return the `BatchOutputs` of a batch from those of its micro-batches."""
    rows, added = zip(*parts, strict=True)
    return BatchOutputs(
        [keras.ops.concatenate(each) for each in zip(*rows, strict=True)],
        [sum(each) for each in zip(*added, strict=True)],
    )


def split(data, size):
    """Return the micro-batches of `data`: `size` samples each, and what remains."""
    return [each.of(data) for each in slices(data, size)]
