"""RAdam: Adam that takes momentum steps until its denominator can be trusted."""

import math

from keras import ops

from tensorflow_ranger.rules.bias_correction import bias_correction

THRESHOLD = 5.0  # the paper proves 4; its authors' code waits for 5, and so do we


def rectifier(step, beta_2, dtype="float32"):
    """Return RAdam's step multiplier, and whether Adam's denominator is in use yet.

    At first Adam divides by an average of few squared gradients, so its step has huge
    variance. RAdam measures the length of that average,

        rho_t = rho_inf - 2 t beta_2^t / (1 - beta_2^t),   rho_inf = 2 / (1 - beta_2) - 1,

    takes momentum steps while ``rho_t < THRESHOLD``, then scales Adam's step by ``r_t -> 1``.

    Args:
        step: Integer scalar >= 1: updates applied, counting this one. Under gradient
            accumulation this counts updates, not micro-batches.
        beta_2: Python float; decay rate of the second moment.
        dtype: Name of the dtype of the multiplier.

    Returns:
        ``(scale, adaptive)``: scalars, of `dtype` (1 while not adaptive) and bool.

    Raises:
        ValueError: `beta_2` outside (0, 1), or too small for `rho_t` to reach THRESHOLD.

    References:
        Liu et al., 2020, Algorithm 2. https://arxiv.org/abs/1908.03265
    """
    rho_inf = 2.0 / (1.0 - beta_2) - 1.0 if 0.0 < beta_2 < 1.0 else 0.0
    if rho_inf <= THRESHOLD:
        raise ValueError(
            f"RAdam would never rectify: got beta_2={beta_2}, expected 2/3 < beta_2 < 1. "
            "For a smaller beta_2 use SGD with momentum, which RAdam would amount to."
        )
    # 1 - beta_2^t loses its digits in float32: at beta_2=0.9999 rectification would begin
    # at t=2, not 6. So the first step is found here in float64, and r_t through expm1.
    decay = -math.log(beta_2)
    first = next(
        t for t in range(1, 10_000) if rho_inf - 2 * t / math.expm1(t * decay) >= THRESHOLD
    )
    t = ops.cast(ops.maximum(step, first), dtype)  # keeps the unused branch finite
    rho = rho_inf - 2.0 * t / ops.expm1(t * decay)
    scale = ops.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    adaptive = ops.greater_equal(step, first)
    return ops.where(adaptive, scale, ops.ones_like(scale)), adaptive


def descent(step, learning_rate, beta_1, beta_2, epsilon, dtype="float32"):
    """Return the three scalars of a RAdam update.

    With the moving averages ``m`` and ``v`` of the gradient and its square, the update is

        w <- w - rate m / (factor sqrt(v) + offset):

    Adam's step times ``r_t`` where the rectifier is in use, and before that the step of momentum,
    ``m / (1 - beta_1^t)``, whose denominator is 1. Epsilon stands beside the root, before the bias
    correction, as in Keras' Adam.

    Args:
        step: Integer scalar >= 1: updates applied, counting this one.
        learning_rate: Scalar.
        beta_1: Python float in [0, 1); decay rate of the first moment.
        beta_2: Python float in (2/3, 1); decay rate of the second moment.
        epsilon: Python float.
        dtype: Name of the results' dtype.

    Returns:
        ``(rate, factor, offset)``: scalars of `dtype`.

    Raises:
        ValueError: As `rectifier` does.

    References:
        Liu et al., 2020, Algorithm 2. https://arxiv.org/abs/1908.03265
    """
    scale, adaptive = rectifier(step, beta_2, dtype)
    one = ops.ones_like(scale)
    adam = scale * ops.sqrt(bias_correction(step, beta_2, dtype))
    rate = ops.cast(learning_rate, dtype) * ops.where(adaptive, adam, one)
    return (
        rate / bias_correction(step, beta_1, dtype),
        ops.cast(adaptive, dtype),
        ops.where(adaptive, epsilon * one, one),
    )
