"""Where to cut a batch that is sorted by length, so that few padded cells are computed."""

import numpy as np

_POSITIONS = 256  # at which one dynamic program may cut


def division(lengths, size, full):
    """Return how many samples each micro-batch has, one after the other.

    A micro-batch of n samples computes ``n * sum_a max length_a`` cells, a the time axes. The sum
    over the micro-batches is the least of all divisions into at most ``ceil(samples / size)``, of
    which none has more cells than `size` samples of full length:

        f_k[j] = min_i f_(k-1)[i] + cells(i, j),    cells(i, j) <= size * sum_a full_a.

    In batches of more than 256 samples and micro-batches of more than 16, cuts are looked for at
    every (size / 16)th sample, and in 256 samples or more at a time.

    Args:
        lengths: Integer array of shape ``(samples, axes)``, sorted.
        size: Samples of full length that a micro-batch may be as large as.
        full: Integer array of shape ``(axes,)``; the full lengths.

    Returns:
        List of integers >= 1 whose sum is the number of samples.
    """
    samples = len(lengths)
    together = -(-max(_POSITIONS, 16 * size) // size) * size
    counts = []
    for start in range(0, samples, together):
        counts += _least(lengths[start : start + together], size, size * int(np.sum(full)))
    return counts


def _least(lengths, size, most):
    samples = len(lengths)
    step = -(-samples // _POSITIONS)
    places = np.unique([*range(0, samples, step), *range(0, samples, size), samples])
    cells = _cells(lengths, places)
    cells[cells > most] = np.inf
    np.fill_diagonal(cells, 0.0)  # fewer micro-batches
    found, begins = cells[0], []
    for _ in range(1, -(-samples // size)):
        sums = found[:, None] + cells
        begins.append(np.argmin(sums, axis=0))
        found = np.min(sums, axis=0)
    end, counts = len(places) - 1, []
    for begin in [*reversed(begins), None]:
        start = 0 if begin is None else int(begin[end])
        counts.append(int(places[end] - places[start]))
        end = start
    return [count for count in reversed(counts) if count]


def _cells(lengths, places):
    """Return the cells of a micro-batch from one place to another, infinite for none."""
    between = np.maximum.reduceat(lengths, places[:-1], axis=0)
    count = len(between)
    longest = np.zeros((count, count))
    for axis in between.T:
        longest += np.maximum.accumulate(np.triu(np.broadcast_to(axis, (count, count))), axis=1)
    cells = np.full((count + 1, count + 1), np.inf)
    rows = places[None, 1:] - places[:-1, None]
    cells[:-1, 1:] = np.where(rows > 0, rows * longest, np.inf)
    return cells
