"""The rows of a micro-batch: each step of each sample as a sample of its own."""

import math

import keras
from keras import ops


def as_rows(tensor, axes):
    """Return `tensor` with its first axes as one.

    Args:
        tensor: Tensor with at least `axes` axes.
        axes: How many lead to a row.
    """
    return ops.reshape(tensor, (-1, *tensor.shape[axes:]))


def targets_as_rows(y, axes):
    """Return nested targets as rows."""
    return keras.tree.map_structure(lambda leaf: as_rows(leaf, axes), y)


def weights_as_rows(sample_weight, shape):
    """Return nested sample weights as rows, each with the weight of its sample.

    Args:
        sample_weight: Nested tensors, or None.
        shape: Sizes of the axes that lead to a row.
    """
    axes = len(shape)

    def spread(weight):
        if weight is None:
            return None
        return as_rows(ops.broadcast_to(weight, (*shape, *weight.shape[axes:])), axes)

    return keras.tree.map_structure(spread, sample_weight)


def why_no_rows(y, sample_weight, axes):
    """Return why targets and weights cannot be divided as outputs of so many axes are, or None.

    Args:
        y: Targets of a batch.
        sample_weight: Sample weights of a batch, or None.
        axes: How many axes lead to a row of outputs.
    """
    targets = keras.tree.flatten(y)
    if len(targets) != 1 or targets[0] is None or len(targets[0].shape) < axes:
        shapes = [None if leaf is None else tuple(leaf.shape) for leaf in targets]
        return f"there is not one target for each row of outputs: their shapes are {shapes}"
    sizes = tuple(targets[0].shape[:axes])
    for weight in keras.tree.flatten(sample_weight):
        if weight is None:
            continue
        own = zip(weight.shape[:axes], sizes, strict=False)
        if len(weight.shape) < axes or any(size not in (1, wanted) for size, wanted in own):
            return f"sample weights of shape {tuple(weight.shape)} are for targets of {sizes}"
    return None


def rows_of_sample(shape):
    """Return how many rows each sample has, from the sizes of the axes that lead to a row."""
    return math.prod(shape[1:])
