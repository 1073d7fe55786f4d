"""The search for the fastest micro-batch that fits, one training batch after the other."""

import statistics

from tensorflow_ranger.batch_size.plan import Candidate, MicrobatchPlan, format_bytes

WARM_UP = 1
TIMED = 3
START = 32  # where the search begins if it goes up
GIVE_UP = 1.05  # a size this much slower than the best makes the search look no further
GIVE_UP_AFTER = 2
MUCH_SLOWER = 1.25  # in each of two batches: one such size, and the search looks no further
AS_FAST = 1.03  # sizes whose times differ by less are as fast, and the largest of them is taken


class Search:
    """Says which size to run next, and learns from how it went.

    Sizes are the largest one, which is the whole batch by default, and the powers of two below it.
    The search begins with the largest that fits and goes down; where memory is limited and only
    known after a run, it begins small and goes up while the next size is expected to fit, then down
    if none of them was faster than the first. It ends when sizes get slower, at once where one is
    much slower. Every run is a training batch: nothing is run for the search alone.

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
        self._ended = []  # sizes that have been timed, in the order of their runs
        self._memory = {}
        self._refused = set()
        largest = batch if most is None else min(batch, most)
        powers = [2**power for power in range((largest - 1).bit_length())]
        downwards = [largest, *powers[::-1]]
        self._upwards = []
        if limit is not None and memory_of is None:
            self._upwards = [size for size in downwards if size >= min(START, largest)][::-1]
        self._order = [*self._upwards, *(s for s in downwards if s not in self._upwards)]
        self._place = -1
        self._advance()

    @property
    def done(self):
        """Whether the search has ended."""
        return self._place >= len(self._order)

    @property
    def size(self):
        """The size to run next: the candidate at hand, or the best."""
        return self.best if self.done else self._order[self._place]

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
        elif len(times) == WARM_UP + TIMED or self._is_much_slower(size):
            self._ended.append(size)
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
    def sizes(self):
        """All sizes, the smallest first."""
        return sorted(self._order)

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
        """The median seconds per sample of the sizes timed, in the order of their runs."""
        return {
            size: statistics.median(self._times[size][WARM_UP:])
            for size in self._ended
            if size in self._times
        }

    def _is_much_slower(self, size):
        """Return whether two timed batches say that `size` is much slower than the best."""
        others = [seconds for other, seconds in self.timed.items() if other != size]
        return is_much_slower(self._times[size], others)

    @property
    def _goes_up(self):
        return self._place < len(self._upwards)

    def _advance(self):
        self._place += 1
        if self._gets_slower():
            self._place = len(self._upwards) if self._goes_up else len(self._order)
        while not self.done and not self._may_run(self.size):
            self._place += 1
        if not self._goes_up and self.best in self._upwards[1:]:
            self._place = len(self._order)

    def _gets_slower(self):
        timed = self.timed
        last = list(timed)[-GIVE_UP_AFTER:]
        if last and self._is_much_slower(last[-1]):
            return True
        return len(last) == GIVE_UP_AFTER and all(
            timed[size] > GIVE_UP * timed[self.best] for size in last
        )

    def _may_run(self, size):
        if any(size >= refused for refused in self._refused):
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
        others: Medians of other sizes.
    """
    timed = times[WARM_UP:]
    return len(timed) > 1 and bool(others) and min(timed) > MUCH_SLOWER * min(others)
