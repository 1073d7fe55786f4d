"""Gradient normalization: every variable's gradient has standard deviation one."""

import math

from keras import ops

EPSILON = 1e-8


def normalize(gradient):
    """Return ``gradient / (std(gradient) + 1e-8)``, of a gradient with more than two elements.

    The standard deviation is the unbiased one, over all elements. The mean stays.

    Args:
        gradient: Floating tensor of any shape.

    Returns:
        Tensor of the gradient's shape and dtype.

    References:
        Wright & Demeure, 2021, section 2. https://arxiv.org/abs/2106.13731
    """
    elements = math.prod(gradient.shape)
    if elements <= 2:
        return gradient
    mean = ops.sum(gradient) / elements
    variance = ops.sum(ops.square(gradient - mean)) / (elements - 1)
    return gradient / (ops.sqrt(variance) + EPSILON)
