"""Norm loss: a pull of every output unit's weights towards norm 1."""


def shrinkage(norm, factor, epsilon):
    """Return ``2 factor (1 - 1 / (norm + epsilon))``: what a unit of learning rate takes off.

    It is the gradient of ``factor (1 - norm)^2``, divided by the weight.

    Args:
        norm: Tensor; the norm of each unit's weights.
        factor: Python float >= 0.
        epsilon: Python float > 0, beside the norm.

    Returns:
        Tensor of the norm's shape and dtype.

    References:
        Georgiou et al., 2021, equation 5. https://arxiv.org/abs/2103.06583
    """
    return 2.0 * factor * (1.0 - 1.0 / (norm + epsilon))
