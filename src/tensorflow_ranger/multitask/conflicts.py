"""How the tasks' gradients stand to each other, from their Gram matrices."""

import itertools

import numpy as np
from keras import ops


def size(count):
    """Return how many numbers `observe` keeps for `count` tasks: three per pair."""
    return 3 * count * (count - 1) // 2


def observe(totals, gram, squares):
    """Add a batch to the sums of cosines, the conflicts and the batches of each pair of tasks.

    Two gradients conflict if their inner product is negative. A batch in which one of the two
    vanishes, or is not finite, does not count.

    Args:
        totals: Variable of shape ``(size(T),)``.
        gram: Tensor ``(T, T)``: the inner products of the tasks' gradients.
        squares: Tensor ``(T, T)``: at [i, j] the squared norm of task i's gradient over the weights
            that it shares with task j.
    """
    dtype = totals.dtype
    cosines, conflicts, batches = [], [], []
    for i, j in itertools.combinations(range(gram.shape[0]), 2):
        # The roots before the product: squares of small gradients leave float32.
        lengths = ops.sqrt(squares[i, j]) * ops.sqrt(squares[j, i])
        cosine = gram[i, j] / ops.where(lengths > 0, lengths, ops.ones_like(lengths))
        counts = (lengths > 0) & ops.isfinite(cosine)
        cosines.append(ops.cast(ops.where(counts, cosine, ops.zeros_like(cosine)), dtype))
        conflicts.append(ops.cast(counts & (gram[i, j] < 0), dtype))
        batches.append(ops.cast(counts, dtype))
    totals.assign_add(ops.stack([*cosines, *conflicts, *batches]))


def summary(totals):
    """Return the mean cosine and the share of conflicts of each pair; NaN where none was seen.

    Args:
        totals: Array of shape ``(size(T),)``, as `observe` leaves it.

    Returns:
        Tuple ``(cosines, conflicts)`` of arrays, in the order of `itertools.combinations`.
    """
    cosines, conflicts, batches = np.asarray(totals, "float64").reshape(3, -1)
    batches = np.where(batches > 0, batches, np.nan)
    return cosines / batches, conflicts / batches
