"""Where to divide a chain of layers whose calls are run again in the backward pass."""

import itertools
from typing import NamedTuple

_TRIALS = 64  # bounds on the largest segment that are tried


class Segments(NamedTuple):
    """The segments at the beginning of a chain that are run again; the rest is not."""

    pairs: tuple[tuple[int, int], ...]  #: Their first layers, and the first ones after them.
    memory: float  #: Bytes that the backward pass needs at most.
    repeated: float  #: The fraction of the chain's bytes that their layers make.


def divisions(kept, handed_on, joins):
    """Return all segments worth considering: whoever needs less memory repeats more.

    The backward pass begins with the layers that are not run again, so it needs what they keep, and
    the inputs of the segments before them. While the segment (i, j) is run again, it needs what its
    own layers keep. So the memory is at most

        sum of handed_on[j - 1] over the segments  +  the largest sum(kept[i:j]),

    where the layers at the end count as a segment. For a bound on the second term the first one is
    made least by dynamic programming, for each place where the end may begin. The bounds are the
    sizes that segments may have, or `_TRIALS` of them where there are more.

    Args:
        kept: For each layer of the chain the bytes that its backward pass keeps.
        handed_on: For each layer the bytes that the layers after it are given by it and by those
            before it.
        joins: For each layer whether it may be in one segment with the next one.

    Returns:
        List of `Segments`. The first one repeats nothing; the last one needs the least memory.

    References:
        Chen et al., 2016, "Training deep nets with sublinear memory cost", algorithm 3, where the
        bound is called the budget. https://arxiv.org/abs/1604.06174
    """
    found, least = [], float("inf")
    for way in sorted(_ways(kept, handed_on, joins), key=lambda way: way[:4]):
        if way.memory < least:
            least = way.memory
            found.append(_segments_of(way, kept))
    return found


def in_number(kept, handed_on, joins, count):
    """Return the `Segments` of `count` segments, the end included, that need the least memory.

    The number is as near to `count` from below as can be, if `joins` allows for so few.

    Args:
        kept: As for `divisions`.
        handed_on: As for `divisions`.
        joins: As for `divisions`.
        count: Number of segments.
    """
    ways = list(_ways(kept, handed_on, joins))
    numbers = {way.number for way in ways}
    number = max((n for n in numbers if n <= count), default=min(numbers))
    ways = [way for way in ways if way.number == number]
    return _segments_of(min(ways, key=lambda way: (way.memory, way.repeated)), kept)


class _Prefix(NamedTuple):
    """The best segments of the layers before a place."""

    given: float  #: Bytes that they hand on.
    number: int
    largest: float  #: Bytes that the largest one keeps.
    start: int  #: Where the last one begins.


class _Way(NamedTuple):
    """A way to divide the chain."""

    repeated: float  #: Bytes that the layers keep that are run again.
    memory: float
    number: int  #: Of the segments, the end included.
    start: int  #: Where the end begins.
    table: list[_Prefix]  #: Where the segments before it are looked up.


def _ways(kept, handed_on, joins):
    whole = sum(kept)
    sums = [0, *itertools.accumulate(kept)]
    last = handed_on[-1] if kept else 0
    for bound in _bounds(kept):
        table = _within(bound, kept, handed_on, joins)
        for start, prefix in enumerate(table[: max(1, len(kept))]):
            memory = prefix.given + last + max(prefix.largest, whole - sums[start])
            yield _Way(sums[start], memory, prefix.number + 1, start, table)


def _segments_of(way, kept):
    pairs, stop = [], way.start
    while stop:
        pairs.append((way.table[stop].start, stop))
        stop = way.table[stop].start
    return Segments(tuple(pairs[::-1]), way.memory, way.repeated / max(1, sum(kept)))


def _bounds(kept):
    sums = [0, *itertools.accumulate(kept)]
    sizes = {after - before for before, after in itertools.combinations(sums, 2)}
    bounds = sorted(size for size in sizes if size >= max(kept)) or [0]
    step = max(1, len(bounds) // _TRIALS)
    return [*bounds[::step], bounds[-1]]


def _within(bound, kept, handed_on, joins):
    """Return, for each place, the segments of at most `bound` bytes that hand on the fewest."""
    sums = [0, *itertools.accumulate(kept)]
    best = [_Prefix(0, 0, 0, 0)]
    for stop in range(1, len(kept) + 1):
        choices, start = [], stop - 1
        while start >= 0 and (start == stop - 1 or sums[stop] - sums[start] <= bound):
            given, number, largest, _ = best[start]
            own = sums[stop] - sums[start]
            choices.append(
                _Prefix(given + handed_on[stop - 1], number + 1, max(largest, own), start)
            )
            if start > 0 and not joins[start - 1]:
                break
            start -= 1
        best.append(min(choices))
    return best
