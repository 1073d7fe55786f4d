"""What a compiled loss divides by in a micro-batch, up to a constant factor."""

from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals

_MEANS = ("mean", "sum_over_batch_size")


def is_keras_call(loss):
    """Return whether a loss reduces what it computes as Keras' losses do."""
    return type(loss).__call__ is keras.losses.Loss.__call__


class Masks(NamedTuple):
    """The masks of a loss' values."""

    output: Any  #: What Keras keeps with the output, or None.
    own: Any  #: What the loss itself sets, or None.


def ignored_class(loss):
    """Return the class of the targets that `loss` leaves out, or None."""
    is_known = type(loss) is keras.losses.SparseCategoricalCrossentropy
    return loss.ignore_class if is_known else None


def masks_of(loss, y_true, y_pred, sets_mask):
    """Return the `Masks` of a loss; an ignored class is known without outputs.

    Args:
        loss: The loss.
        y_true: Its targets.
        y_pred: The outputs, or None where no mask depends on them.
        sets_mask: Whether the loss itself masks its values.
    """
    output = None if y_pred is None else keras_internals.get_mask(y_pred)
    ignored = ignored_class(loss)
    if ignored is not None:
        y_true = ops.convert_to_tensor(y_true, loss.dtype)
        return Masks(output, ops.not_equal(y_true, ops.cast(ignored, loss.dtype)))
    if y_pred is None or not sets_mask:
        return Masks(output, None)
    return Masks(output, keras_internals.get_mask(values_of(loss, y_true, y_pred)))


def mass_of(loss, masks, sample_weight):
    """Return what `loss` divides by, up to a constant factor, or None if samples say it."""
    if not is_keras_call(loss):
        return None
    mask = None
    for each in masks:
        if each is not None:
            each = ops.cast(each, loss.dtype)
            mask = each if mask is None else mask * ops.reshape(each, ops.shape(mask))
    if loss.reduction in _MEANS:
        return None if mask is None else ops.sum(mask)
    if loss.reduction != "mean_with_sample_weight" or (mask is None and sample_weight is None):
        return None
    if sample_weight is None:
        return ops.sum(mask)
    weight = ops.convert_to_tensor(sample_weight, loss.dtype)
    if mask is not None:
        if len(weight.shape) == len(mask.shape) + 1:
            weight = ops.squeeze(weight, -1)
        elif len(mask.shape) == len(weight.shape) + 1 and mask.shape[-1] == 1:
            mask = ops.squeeze(mask, -1)
        weight = weight * mask
    return ops.sum(weight)


def values_of(loss, y_true, y_pred):
    """Return what `loss` makes of a batch before it is reduced."""

    def convert(values):
        return keras.tree.map_structure(lambda v: ops.convert_to_tensor(v, loss.dtype), values)

    values = loss.call(convert(y_true), convert(y_pred))
    return values if ops.is_tensor(values) else ops.convert_to_tensor(values, loss.dtype)


def value_of(loss, y_true, y_pred, sample_weight):
    """Return what `loss` is of a batch, as a tensor."""
    value = loss(y_true, y_pred, sample_weight)
    return value if ops.is_tensor(value) else ops.convert_to_tensor(value, loss.dtype)
