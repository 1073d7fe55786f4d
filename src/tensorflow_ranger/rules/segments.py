"""Where to divide a chain of layers whose calls are run again in the backward pass."""

import itertools

_TRIALS = 64  # bounds on the largest segment that are tried


def divided(kept, handed_on, joins, count=None):
    """Return the segments for which the backward pass needs the least memory.

    While the segment (i, j) is run again, there are the inputs of the segments before it, and what
    its own layers keep. So the memory is at most

        sum of handed_on[j - 1] over the segments  +  the largest sum(kept[i:j]).

    For a bound on the second term the first one is made least by dynamic programming. The bounds
    are the sizes that segments may have, or `_TRIALS` of them where there are more.

    Args:
        kept: For each layer of the chain the bytes that its backward pass keeps.
        handed_on: For each layer the bytes that the layers after it are given by it and by those
            before it.
        joins: For each layer whether it may be in one segment with the next one.
        count: Number of segments: as near to it from below as can be, if `joins` allows for so few.
            None for any number.

    Returns:
        List of pairs ``(start, stop)``, which cover the chain.

    References:
        Chen et al., 2016, "Training deep nets with sublinear memory cost", algorithm 3, where the
        bound is called the budget. https://arxiv.org/abs/1604.06174
    """
    if not kept:
        return []
    found = [_within(bound, kept, handed_on, joins) for bound in _bounds(kept)]
    if count is not None:
        lengths = {len(segments) for segments in found}
        length = max((n for n in lengths if n <= count), default=min(lengths))
        found = [segments for segments in found if len(segments) == length]
    return min(
        found,
        key=lambda segments: (memory_of(segments, kept, handed_on), len(segments)),
    )


def memory_of(segments, kept, handed_on):
    """Return the bytes of `divided` for these segments."""
    inputs = sum(handed_on[stop - 1] for _, stop in segments)
    return inputs + max(sum(kept[start:stop]) for start, stop in segments)


def _bounds(kept):
    sums = [0, *itertools.accumulate(kept)]
    sizes = {after - before for before, after in itertools.combinations(sums, 2)}
    bounds = sorted(size for size in sizes if size >= max(kept))
    step = max(1, len(bounds) // _TRIALS)
    return [*bounds[::step], bounds[-1]]


def _within(bound, kept, handed_on, joins):
    """Return the segments of at most `bound` bytes each that hand on the fewest bytes."""
    sums = [0, *itertools.accumulate(kept)]
    best = [(0, 0, 0)]  # for each place: bytes handed on, number of segments, last segment's start
    for stop in range(1, len(kept) + 1):
        choices, start = [], stop - 1
        while start >= 0 and (start == stop - 1 or sums[stop] - sums[start] <= bound):
            given, number, _ = best[start]
            choices.append((given + handed_on[stop - 1], number + 1, start))
            if start > 0 and not joins[start - 1]:
                break
            start -= 1
        best.append(min(choices))
    segments, stop = [], len(kept)
    while stop:
        segments.append((best[stop][2], stop))
        stop = best[stop][2]
    return segments[::-1]
