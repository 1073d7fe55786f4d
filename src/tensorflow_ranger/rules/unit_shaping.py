"""Clipping, centralization and normalization of a gradient, as one map for each output unit."""

import math

from keras import ops

EPSILON = 1e-8  # beside the standard deviation


def shaping(gradient, axes, clipping_factor, centralize, normalize):
    """Return ``(shift, factor)``: the shaped gradient is ``factor (gradient - shift)``.

    The gradient g is clipped unit by unit, ``g_i <- a_i g_i``; then it loses each unit's mean; then
    it is divided by its standard deviation + 1e-8, the unbiased one over all elements. Done one
    after the other, each of the three reads all that the one before has written. Together they
    need no more than each unit's mean and sum of squared deviations,

        mean_i = (sum_j g_ij) / n,    d_i = sum_j (g_ij - mean_i)^2,

    since the norm that clipping looks at is ``sqrt(d_i + n mean_i^2)``, and the variance is

        (sum_i a_i^2 d_i + n sum_i (m_i - M)^2) / (N - 1),    M = (n / N) sum_i m_i

    with ``m_i = a_i mean_i``, or 0 once means are taken off. No two large numbers are subtracted.

    Args:
        gradient: Floating tensor of N elements, at least one.
        axes: Tuple of ints, the n elements of a unit. None takes all axes.
        clipping_factor: Function from the norms of the units' gradients to the factors ``a_i``, or
            None.
        centralize: Whether to take off each unit's mean. A unit of one element keeps it.
        normalize: Whether to divide by the standard deviation, of more than two elements.

    Returns:
        ``(shift, factor)``: tensors that broadcast against the gradient.

    References:
        Brock et al., 2021, https://arxiv.org/abs/2102.06171, equation 3; Yong et al., 2020,
        https://arxiv.org/abs/2004.01461, equation 1; Wright & Demeure, 2021,
        https://arxiv.org/abs/2106.13731, section 2.
    """
    elements = math.prod(gradient.shape)
    members = elements if axes is None else math.prod(gradient.shape[axis] for axis in axes)
    # Keras' mean rounds float64 through float32 on some backends.
    mean = ops.sum(gradient, axis=axes, keepdims=True) / members
    squares = ops.sum(ops.square(gradient - mean), axis=axes, keepdims=True)
    factor = ops.ones_like(mean)
    if clipping_factor is not None:
        factor = clipping_factor(ops.sqrt(squares + members * ops.square(mean)))
    is_centralized = centralize and members > 1
    if normalize and elements > 2:
        within = ops.sum(ops.square(factor) * squares)
        between = 0.0
        if not is_centralized:
            means = factor * mean
            distances = means - ops.sum(means) * (members / elements)
            between = members * ops.sum(ops.square(distances))
        deviation = ops.sqrt((within + between) / (elements - 1))
        factor = factor / (deviation + EPSILON)
    return mean if is_centralized else ops.zeros_like(mean), factor
