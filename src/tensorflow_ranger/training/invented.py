"""Samples that no data has: what depends on the samples beside it shows among them.

Samples of one kind may hide that they meet in a loss: weights made of the batch's classes are the
same for any samples of one class.
"""

import keras
from keras import ops

from tensorflow_ranger.backend import arrays


def among_targets(y, kept):
    """Return targets whose first `kept` samples are those of `y`, and the others differ.

    Zero becomes one, and all else zero: that is another number for each, and a class, a flag and a
    share of one wherever these are asked for.

    Args:
        y: Nested arrays or None.
        kept: Number of samples.
    """
    return _among(y, kept, _is_zero)


def among_outputs(y_pred, kept):
    """Return outputs whose first `kept` samples are those of `y_pred`, and the others differ.

    A probability stays one, and a logit changes its sign and becomes large.

    Args:
        y_pred: Nested arrays.
        kept: Number of samples.
    """
    return _among(y_pred, kept, _mirrored)


def _among(leaves, kept, invented):
    def joined(leaf):
        if leaf is None or arrays.is_sparse(leaf):
            return leaf
        return ops.concatenate([leaf[:kept], ops.cast(invented(leaf[kept:]), leaf.dtype)])

    return keras.tree.map_structure(joined, leaves)


def _is_zero(leaf):
    return ops.equal(leaf, ops.zeros_like(leaf))


def _mirrored(leaf):
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(leaf.dtype)):
        return _is_zero(leaf)
    is_share = ops.logical_and(leaf >= 0, leaf <= 1)
    return ops.where(is_share, 1 - leaf, -10 * leaf)
