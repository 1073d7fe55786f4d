"""Positive-negative momentum: two averages, of the odd and of the even gradients."""

import math

from keras import ops


def share(beta_1):
    """Return the share of the gradient in the average that moves: ``1 - beta_1^2``.

    The average of the odd updates moves at odd updates and stands still at even ones, and the
    other way round: ``m <- m + share (g - m)``.

    Args:
        beta_1: Python float in [0, 1).

    References:
        Xie et al., 2021, Algorithm 2. https://arxiv.org/abs/2103.17182
    """
    return 1 - beta_1**2


def weights(step, factor, noise, dtype="float32"):
    """Return what the two averages are multiplied by to make the update's direction.

    The average that moved counts ``1 + factor`` and the other ``-factor``, divided by
    ``sqrt((1 + noise)^2 + noise^2)``. With ``noise = factor`` that is the paper's normalization,
    which keeps the size of the noise; Ranger21's released code has ``noise = beta_2``.

    Args:
        step: Integer scalar >= 1: updates applied, counting this one.
        factor: Python float >= 0; 0 leaves the negative part out.
        noise: Python float >= 0.
        dtype: Name of the results' dtype.

    Returns:
        Tuple of two scalars of `dtype`, of the odd and of the even average.

    References:
        Xie et al., 2021, equation 5. https://arxiv.org/abs/2103.17182
    """
    odd = ops.cast(step % 2, dtype)
    norm = math.hypot(1 + noise, noise)
    return tuple((moved * (1 + 2 * factor) - factor) / norm for moved in (odd, 1 - odd))
