"""Updates of many variables, one after the other: XLA and TensorFlow's graphs see them all."""

from keras import ops


def blend(slots, tensors, share):
    """Assign ``slot + share (tensor - slot)`` to the variables `slots`; `share` is a number."""
    for slot, tensor in zip(slots, tensors, strict=True):
        distance = ops.cast(tensor, slot.dtype) - slot.value
        slot.assign(slot.value + _scalar(share, slot.dtype) * distance)


def blend_squares(slots, tensors, share):
    """Assign ``slot + share (tensor^2 - slot)`` to the variables `slots`; `share` is a number."""
    for slot, tensor in zip(slots, tensors, strict=True):
        distance = ops.square(ops.cast(tensor, slot.dtype)) - slot.value
        slot.assign(slot.value + _scalar(share, slot.dtype) * distance)


def descend(variables, moments, squares, rate, factor, offset):
    """Subtract ``rate moment / (factor sqrt(square) + offset)`` from the variables."""
    for variable, moment, square in zip(variables, moments, squares, strict=True):
        dtype = moment.dtype
        denominator = _scalar(factor, dtype) * ops.sqrt(square.value) + _scalar(offset, dtype)
        step = _scalar(rate, dtype) * moment.value / denominator
        variable.assign(ops.cast(ops.cast(variable.value, dtype) - step, variable.dtype))


def _scalar(value, dtype):
    # On TensorFlow `ops.cast` rounds a Python number to float32 first.
    return ops.convert_to_tensor(value, dtype)
