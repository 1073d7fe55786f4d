"""The held-out part of a data set."""

import numpy as np

SEED = 0  # fixed: runs with different seeds are judged on the same samples


def split(count, held_out):
    """Return the indices of the training samples and of the held-out ones, in random order.

    Args:
        count: Samples in all.
        held_out: How many of them to hold out.
    """
    order = np.random.default_rng(SEED).permutation(count)
    return order[: count - held_out], order[count - held_out :]
