"""Gradient centralization: every output unit's gradient has mean zero."""

import math

from keras import ops


def centralize(gradient, axes):
    """Return ``gradient - mean(gradient)``, the mean over the fan-in of each output unit.

    It is linear, so it may be applied to a sum of gradients as well as to their mean.

    Args:
        gradient: Floating tensor of any shape.
        axes: Tuple of ints; the axes of the fan-in. Empty to leave the gradient alone. A fan-in of
            one weight leaves it alone as well: a mean of one would take all of it.

    Returns:
        Tensor of the gradient's shape and dtype.

    References:
        Yong et al., 2020, equation 1. https://arxiv.org/abs/2004.01461
    """
    weights = math.prod(gradient.shape[axis] for axis in axes)
    if weights == 1:
        return gradient
    # Keras' mean rounds float64 through float32 on some backends.
    return gradient - ops.sum(gradient, axis=axes, keepdims=True) / weights
