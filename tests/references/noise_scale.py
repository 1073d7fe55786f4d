"""The noise scale in float64 NumPy: every window is kept, and weighed when it is asked for."""

import numpy as np


def window(gradients, samples):
    """Return the estimates of tr(S) and |g|^2 that one window gives, and its samples.

    They are found pair by pair: gradients of two micro-batches agree in the true gradient alone, so
    their inner products are estimates of its square, and what they differ by is noise.

    Args:
        gradients: Array ``(N, d)``; the micro-batches' mean gradients.
        samples: Array ``(N,)``; their samples.
    """
    gradients, samples = np.asarray(gradients, "float64"), np.asarray(samples, "float64")
    whole = samples.sum()
    trace = 0.0
    for i in range(len(samples)):
        for j in range(i):
            apart = gradients[i] - gradients[j]
            trace += samples[i] * samples[j] * (apart @ apart)
    trace /= whole * (len(samples) - 1)
    mean = samples @ gradients / whole
    return trace, mean @ mean - trace / whole, whole


def weights(count, memory):
    """Return what each of `count` windows weighs in the averages."""
    shares = np.zeros(count)
    for i in range(count):
        share = 1 / min(i + 1, memory)
        shares[:i] *= 1 - share
        shares[i] = share
    return shares


def estimate(windows, memory):
    """Return the scale, the least and the largest ratio that 95 % allow, and the mean samples."""
    traces, squares, samples = np.array(windows).T
    share = weights(len(windows), memory)
    trace, square = share @ traces, share @ squares
    spread = (share**2).sum() / (1 - (share**2).sum())

    def is_allowed(ratio):
        # Is the mean of trace - ratio * square within 1.96 of its own standard errors of 0?
        residuals = traces - ratio * squares
        mean = share @ residuals
        return mean**2 <= 1.96**2 * spread * (share @ (residuals - mean) ** 2)

    scale = trace / square
    return scale, _edge(is_allowed, scale, 0.0), _edge(is_allowed, scale, 1e9), share @ samples


def _edge(is_allowed, inside, outside):
    """Return where `is_allowed` ends between the two, or `outside` if it does not."""
    if is_allowed(outside):
        return outside
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_allowed(middle) else (inside, middle)
    return inside
