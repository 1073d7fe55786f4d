"""Norm loss: a pull of every output unit's weights towards norm 1."""

from tensorflow_ranger.rules.clipping import unit_norm


def shrinkage(weight, axes, factor, epsilon):
    """Return ``2 factor (1 - 1 / (norm + epsilon))``: what a unit of learning rate takes off.

    It is the gradient of ``factor (1 - norm)^2``, divided by the weight.

    Args:
        weight: Floating tensor.
        axes: Tuple of ints, the axes of a unit's weights, or None for all of them.
        factor: Python float >= 0.
        epsilon: Python float > 0, beside the norm.

    Returns:
        Tensor that broadcasts against `weight`.

    References:
        Georgiou et al., 2021, equation 5. https://arxiv.org/abs/2103.06583
    """
    return 2.0 * factor * (1.0 - 1.0 / (unit_norm(weight, axes) + epsilon))
