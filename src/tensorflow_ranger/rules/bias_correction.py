"""Bias correction: how much of a moving average is there yet."""

import math

from keras import ops


def bias_correction(step, decay, dtype):
    """Return ``1 - decay ** step`` without losing its digits.

    In float32 the difference cancels: at a decay of 0.9999 and step 1 two digits are left of it.

    Args:
        step: Integer scalar >= 1.
        decay: Python float in [0, 1).
        dtype: Name of the result's dtype.

    Returns:
        Scalar of `dtype`.

    References:
        Kingma & Ba, 2015, section 3. https://arxiv.org/abs/1412.6980
    """
    if decay == 0.0:
        return ops.ones((), dtype)
    return -ops.expm1(ops.cast(step, dtype) * math.log(decay))
