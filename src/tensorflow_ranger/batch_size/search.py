"""The search for the fastest micro-batch that fits, one training batch after the other."""

import math

from tensorflow_ranger.batch_size.plan import Candidate, MicrobatchPlan, format_bytes

WARM_UP = 1
TIMED = 3  # batches of a size whose memory is learned from them
CONFIRMED = 2  # batches that must agree that a size is slower
START = 32  # where the search begins if it goes up
GIVE_UP = 1.05  # a size this much slower than the best makes the search go up no further
GIVE_UP_AFTER = 2
MUCH_SLOWER = 1.25  # in each of two batches: one such size, and the search goes up no further
STRIDE = 2  # powers of two between the sizes that are run on the way down
SLOWER = 1.1  # than the best: the search goes down no further
VALLEY = 0.7  # of the largest size's time: below, the last stride must have been worth it
WORTH_A_STRIDE = 1.2
AS_FAST = 1.03  # sizes whose times differ by less are as fast, and the largest of them is taken


class Search:
    """Says which size to run next, and learns from how it went.

    Sizes are the largest one, which is the whole batch by default, and the powers of two below it.
    The search begins with the largest that fits and goes down by factors of four while sizes get
    faster. Then it runs a size between two of these where a parabola through the times, over the
    logarithm of the size, expects it to be faster. What else the machine does only adds to a time,
    so the least of a size's timed batches counts: one batch shows that a size is faster, two are
    needed to show that it is slower.

    Where memory is limited and only known after a run, it begins small and goes up by factors of
    two while the next size is expected to fit, `TIMED` batches each, then down if none of them was
    faster than the first.

    Every run is a training batch: nothing is run for the search alone.

    Args:
        batch: Samples of the batch.
        limit: Bytes the step may need, or None.
        memory_of: Function ``size -> bytes`` that knows beforehand, or None where nobody does.
        base: Bytes in use before any run.
        most: The largest size that may be run, or None for the whole batch.
    """

    def __init__(self, batch, limit=None, memory_of=None, base=0, most=None):
        self.batch = batch  #: Samples of the batch.
        self._limit = limit
        self._memory_of = memory_of
        self.base = base  #: Bytes in use before any run.
        self._times = {}
        self._memory = {}
        self._refused = set()
        largest = batch if most is None else min(batch, most)
        powers = [2**power for power in range((largest - 1).bit_length())]
        self.sizes = [*powers, largest]  #: All sizes, the smallest first.
        self._upwards = []
        if limit is not None and memory_of is None:
            self._upwards = [size for size in self.sizes if size >= min(START, largest)]
        self._not_up_yet = list(self._upwards)
        self._goes_up = bool(self._upwards)
        self._next = None
        self._advance()

    @property
    def done(self):
        """Whether the search has ended."""
        return self._next is None

    @property
    def size(self):
        """The size to run next: the candidate at hand, or the best."""
        return self.best if self.done else self._next

    @property
    def best(self):
        """The fastest size that fits, or None if none was timed."""
        timed = self.timed
        least = min(timed.values(), default=0)
        return max((size for size in timed if timed[size] <= AS_FAST * least), default=None)

    def record(self, size, seconds, memory=None):
        """Learn that a batch in micro-batches of `size` took `seconds` and `memory` bytes."""
        if memory is not None:
            self._memory[size] = max(memory, self._memory.get(size, 0))
        times = self._times.setdefault(size, [])
        times.append(seconds / self.batch)
        if self._is_over_limit(size):
            self.refuse(size)
        elif len(times) >= WARM_UP + (TIMED if self._goes_up else 1) or self._is_much_slower(size):
            self._advance()

    def refuse(self, size):
        """Learn that `size` does not fit."""
        self._refused.add(size)
        self._times.pop(size, None)
        if not self.done and not self._may_run(self.size):
            self._advance()

    @property
    def limit(self):
        """Bytes the step may need: as many as a size has needed, where no limit was given.

        None where nobody tells what sizes need.
        """
        known = [self._memory[size] for size in self.timed if size in self._memory]
        return None if not known else self._limit or max(known)

    @property
    def larger(self):
        """The sizes above the largest that was timed, the smallest first."""
        return [size for size in self.sizes if size > max(self.timed)]

    def bytes_per_sample(self):
        """Return the slope of a line through the two largest sizes whose memory is known.

        The whole batch is none of them: it may need no sum of gradients. Where there is one size
        only, the line begins at the bytes in use before any run.
        """
        known = {0: self.base, **self._memory}
        low, high = sorted(size for size in known if size < self.batch)[-2:]
        return (known[high] - known[low]) / (high - low)

    def bytes_of(self, size, slope):
        """Return the bytes that `size` needs, or is expected to with `slope` more for a sample."""
        largest = max(self._memory)
        return self._memory.get(size, self._memory[largest] + slope * (size - largest))

    def plan(self):
        """Return the search so far as a `MicrobatchPlan`."""
        timed = self.timed
        in_use = [] if self.size is None else [self.size]
        known = sorted({*self._times, *self._memory, *self._refused, *in_use})
        candidates = tuple(
            Candidate(
                size,
                self._memory.get(size),
                timed.get(size),
                size not in self._refused,
            )
            for size in known
        )
        return MicrobatchPlan(self.batch, candidates, self.size, self._reason(), not self.done)

    def _reason(self):
        refused = ", ".join(str(size) for size in sorted(self._refused))
        limit = "the memory" if self._limit is None else format_bytes(self._limit)
        unfit = f"; {refused} did not fit {limit}" if refused else ""
        if not self.done:
            return f"Still measuring: {self.size} samples at a time are next{unfit}."
        return (
            f"{self.best} of {self.batch} samples at a time are the fastest per sample of "
            f"{len(self.timed)} sizes timed{unfit}."
        )

    @property
    def timed(self):
        """The least seconds per sample of the sizes timed, in the order of their first runs."""
        return {
            size: min(times[WARM_UP:])
            for size, times in self._times.items()
            if len(times) > WARM_UP
        }

    def _is_much_slower(self, size):
        """Return whether two timed batches say that `size` is much slower than the best."""
        others = [seconds for other, seconds in self.timed.items() if other != size]
        return is_much_slower(self._times[size], others)

    def _advance(self):
        self._next = self._larger_size() if self._goes_up else None
        if self._next is None:
            self._goes_up = False
            self._next = self._size_below_or_between()

    def _larger_size(self):
        """Return the next size on the way up, or None at its end."""
        while self._not_up_yet and not self._gets_slower():
            size = self._not_up_yet.pop(0)
            if self._may_run(size):
                return size
        return None

    def _gets_slower(self):
        timed = self.timed
        last = list(timed)[-GIVE_UP_AFTER:]
        if last and self._is_much_slower(last[-1]):
            return True
        return len(last) == GIVE_UP_AFTER and all(
            timed[size] > GIVE_UP * timed[self.best] for size in last
        )

    def _size_below_or_between(self):
        timed = self.timed
        if not timed:
            return self._largest_up_to(len(self.sizes) - 1)
        if self.best in self._upwards[1:]:
            return None
        size = self._size_below(timed)
        if size is None:
            size = self._size_between(timed)
        return self._size_to_confirm(timed) if size is None else size

    def _size_below(self, timed):
        """Return the next size on the way down, the last one to confirm it is slow, or None."""
        smallest, *larger = sorted(timed)
        if timed[smallest] > SLOWER * min(timed.values()):
            return self._unconfirmed([smallest])
        is_valley = larger and timed[larger[0]] < VALLEY * timed[larger[-1]]
        if is_valley and timed[smallest] * WORTH_A_STRIDE > timed[larger[0]]:
            return None
        place = self.sizes.index(smallest)
        return self._largest_up_to(max(place - STRIDE, 0)) if place else None

    def _size_between(self, timed):
        """Return a size beside the fastest that is expected to be faster, or None."""
        fastest = min(timed, key=timed.__getitem__)
        place = self.sizes.index(fastest)
        expected = {
            size: _interpolated(timed, size)
            for size in self.sizes[max(place - 1, 0) : place + 2]
            if size not in timed and min(timed) < size < max(timed)
        }
        size = min(expected, key=expected.__getitem__, default=None)
        if size is None or expected[size] >= timed[fastest]:
            return None
        return size if self._may_run(size) else None  # which may compile it to know its memory

    def _size_to_confirm(self, timed):
        """Return a size beside the fastest that one batch showed to be slower, or None.

        Where memory bounds the sizes, larger ones that run layers again may be compared with the
        fastest, so that it is confirmed, too.
        """
        sizes = sorted(timed)
        place = sizes.index(min(timed, key=timed.__getitem__))
        beside = [*sizes[max(place - 1, 0) : place], *sizes[place + 1 : place + 2]]
        is_bounded = self._limit is not None or self._refused
        return self._unconfirmed([*beside, sizes[place]] if is_bounded else beside)

    def _unconfirmed(self, sizes):
        """Return the first of `sizes` that was timed in one batch only, or None."""
        return next(
            (
                size
                for size in sizes
                if len(self._times[size]) < WARM_UP + CONFIRMED and not self._is_refused(size)
            ),
            None,
        )

    def _largest_up_to(self, place):
        """Return the largest of the sizes up to that at `place` that may run, or None."""
        return next(filter(self._may_run, self.sizes[place::-1]), None)

    def _is_refused(self, size):
        return any(size >= refused for refused in self._refused)

    def _may_run(self, size):
        if self._is_refused(size):
            return False
        if self._memory_of is not None:
            self._memory[size] = self._memory_of(size)
        elif self._goes_up and self._memory:
            return self._expected(size) <= self._limit
        if self._is_over_limit(size):
            self._refused.add(size)
            return False
        return True

    def _expected(self, size):
        """Return the bytes a size not yet run is expected to need: a line through the last two."""
        (below, low), (above, high) = sorted({0: self.base, **self._memory}.items())[-2:]
        return high + max(high - low, 0) * (size - above) / (above - below)

    def _is_over_limit(self, size):
        return (
            self._limit is not None
            and self._memory.get(size) is not None
            and self._memory[size] > self._limit
        )


def is_much_slower(times, others):
    """Return whether two timed batches of `times` say that a size is much slower than the best.

    Args:
        times: Seconds of its batches, the first ones included that are not timed.
        others: Times of other sizes.
    """
    timed = times[WARM_UP:]
    return len(timed) > 1 and bool(others) and min(timed) > MUCH_SLOWER * min(others)


def _interpolated(known, size):
    """Return what the polynomial through the three nearest sizes expects of `size`.

    Args:
        known: Dict from sizes to their times, whose logarithms are the places of the nodes.
        size: Integer >= 1.
    """
    place = math.log2(size)
    nodes = sorted(known, key=lambda node: abs(math.log2(node) - place))[:3]
    return sum(
        known[node]
        * math.prod(
            (place - math.log2(other)) / math.log2(node / other) for other in nodes if other != node
        )
        for node in nodes
    )
