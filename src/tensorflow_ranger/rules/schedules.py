"""Ranger21's schedule: up in a line, flat, down in a line."""

import math

from keras import ops


def default_warm_up(beta_2, total):
    """Return the updates of the warm-up: ``2 / (1 - beta_2)``, or 22 % of a short training.

    Args:
        beta_2: Python float in (0, 1).
        total: Updates of the training, or None if they are not known.

    References:
        Ma & Yarats, 2021, section 5. https://arxiv.org/abs/1910.04209
    """
    # 2 / (1 - 0.999) is a little more than 2000, and its ceiling must not be 2001.
    updates = math.ceil(round(2.0 / (1.0 - beta_2), 6))
    if total is not None and updates > 0.45 * total:
        return int(0.22 * total)
    return updates


def warm_up_and_down(step, warm_up, total, start, least, dtype="float32"):
    """Return the share of the learning rate for an update.

    ``step / warm_up`` up to update `warm_up`; 1 until update `start`; from there on in a line
    towards `least`, which is reached after update `total`.

    Args:
        step: Integer scalar >= 1: updates applied, counting this one.
        warm_up: Integer >= 0; updates of the warm-up.
        total: Integer >= 1; updates of the training, or None for no warm-down.
        start: Integer >= 1; the first update of the warm-down.
        least: Python float in [0, 1]; the share at the end.
        dtype: Name of the result's dtype.

    Returns:
        Scalar of `dtype`.
    """
    share = ops.ones((), dtype)
    if warm_up > 0:
        share = ops.cast(ops.minimum(step, warm_up), dtype) / warm_up
    if total is None:
        return share
    falling = ops.cast(step >= start, dtype)
    done = ops.cast(ops.minimum(step, total) + 1 - start, dtype) / (total - start + 1)
    return share + falling * (1.0 - (1.0 - least) * done - share)
