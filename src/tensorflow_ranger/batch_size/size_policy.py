"""Which micro-batch size is run next: one that was given, or one that is searched for.

Both policies answer the same calls. `begin` comes before a batch, `failed` after a size ran out of
memory, and `succeeded` after a batch has been trained. `size` is what to run next, `segments` are
the layers to run again with it, and `plan` says why.
"""

import dataclasses
import logging
import sys
from typing import Any

from tensorflow_ranger.batch_size.plan import Candidate, MicrobatchPlan, format_bytes
from tensorflow_ranger.batch_size.search import Search
from tensorflow_ranger.batch_size.segment_search import SegmentSearch

_logger = logging.getLogger("tensorflow_ranger")

WHOLE = sys.maxsize  # samples: each batch is one micro-batch, while it fits the memory
GROW_AFTER = 100  # batches in a smaller size before a larger one is tried again


class FixedSize:
    """A given size, halved where memory runs out and doubled again later.

    After `GROW_AFTER` batches in a smaller size, twice that size is tried. If it runs out of
    memory, too, the policy waits twice as long before it tries again.

    Args:
        size: Samples per micro-batch, or `WHOLE`.
        plan: `MicrobatchPlan` to begin with, or None.
        segments: `Segments` that are run again, or None.
    """

    def __init__(self, size, plan=None, segments=None):
        self.size = int(size)
        self.segments = segments
        self._given = self.size
        self._patience = GROW_AFTER
        self._batches_until_growth = None
        self._has_grown = False
        self.plan = _plan_of(self.size) if plan is None else plan

    def begin(self, samples, held, memory_of, choices):
        """Do nothing: a size that was given needs no measurement."""

    def is_timed(self, samples):
        """Return whether a batch of `samples` is to be measured: never."""
        return False

    def failed(self, size, error):
        """Take half of `size`, which ran out of memory.

        Raises:
            MemoryError: `size` is 1.
        """
        _require_several(size, error)
        if self._has_grown:
            self._has_grown, self._patience = False, 2 * self._patience
        self._batches_until_growth = self._patience
        reason = f"{size // 2} samples at a time are used: {size} ran out of memory."
        self._take(size // 2, reason, Candidate(size, fits=False))
        _warn(size, self.size)

    def succeeded(self, size, seconds=None, memory=None):
        """Count a batch, and take twice the size after enough of them."""
        if self._batches_until_growth is None:
            return
        self._batches_until_growth -= 1
        if self._batches_until_growth == 0:
            self._has_grown = True
            self._batches_until_growth = self._patience if 2 * self.size < self._given else None
            size = min(2 * self.size, self._given)
            self._take(size, f"{size} samples at a time are tried again.", Candidate(size))

    def _take(self, size, reason, learned):
        self.size = size
        count = 0 if self.segments is None else len(self.segments.pairs)
        learned = dataclasses.replace(learned, segments=count)
        looked_at = (Candidate(size, segments=count), *self.plan.candidates, learned)
        known = {(candidate.size, candidate.segments): candidate for candidate in looked_at}
        # A smaller size that has failed is open again where a larger one is tried again.
        open_again = {n for n in known if n[1] == count and n[0] < size and not known[n].fits}
        candidates = tuple(known[n] for n in sorted(known) if n not in open_again)
        self.plan = MicrobatchPlan(self.plan.batch, candidates, size, reason, segments=count)


class SearchedSize:
    """The fastest size that fits, found during the first batches, and a `FixedSize` from then on.

    Args:
        limit: Bytes that training may need, or None.
        segments: "more" if sizes that keep everything are tried first, and then larger ones that
            fit because layers are run again; "fewer" if sizes run with the segments that need the
            least memory first, and then with fewer layers run again; None if the search is not to
            choose segments.
        most: The largest size, or None for the whole batch.
    """

    def __init__(self, limit=None, segments=None, most=None):
        self._limit = limit
        self._which_segments = segments
        self._most = most
        self._batch: int | None = None
        self._search: Any = None  # a `Search` from the first batch on, then a `SegmentSearch`
        self._found: FixedSize | None = None
        self._searched = MicrobatchPlan(None, (), None, "Nothing has been measured yet.")

    @property
    def plan(self):
        """The search so far, and what became of the size that it found."""
        return self._searched if self._found is None else self._found.plan

    @property
    def size(self):
        """The samples per micro-batch to run next. `begin` comes first."""
        return self._search.size if self._found is None else self._found.size

    @property
    def segments(self):
        """The `Segments` of layers to run again with that size, or None."""
        if self._found is not None:
            return self._found.segments
        return self._search.segments if isinstance(self._search, SegmentSearch) else None

    def begin(self, samples, held, memory_of, choices):
        """Begin the search with the first batch, and the one for segments when it has ended.

        Args:
            samples: Samples of the batch.
            held: Function without arguments that returns the bytes in use.
            memory_of: Function ``size, segments=None -> bytes`` that knows what a step needs before
                it has run, or None where nobody does.
            choices: Function without arguments that returns the `Segments` that may be run again:
                see `SegmentSearch.open`.

        Raises:
            MemoryError: Not even one sample fits the limit.
        """
        if self._search is not None:
            self._go_on(samples, memory_of, choices)
            return
        in_use = held()
        if memory_of is None and self._limit is not None and in_use >= self._limit:
            raise MemoryError(
                f"memory_limit is {format_bytes(self._limit)}, and {format_bytes(in_use)} are in "
                "use before the first batch: by Python, the framework, the model and the data. "
                "Raise it by what a step may need beside these."
            )
        self._search = Search(samples, self._limit, memory_of, in_use, self._most)
        self._batch = samples
        self._learn()

    def _go_on(self, samples, memory_of, choices):
        search = self._search
        waits = isinstance(search, SegmentSearch) and not (search.done or search.is_open)
        if waits and samples == self._batch:
            search.open(choices(), memory_of)
            self._learn()

    def is_timed(self, samples):
        """Return whether a batch of `samples` is to be measured.

        Only batches of the first one's size are, and only while the search goes on.
        """
        return self._found is None and samples == self._batch

    def failed(self, size, error):
        """Take a smaller size than `size`, which ran out of memory.

        Raises:
            MemoryError: `size` is 1, or no smaller size fits the limit.
        """
        if self._found is not None:
            self._found.failed(size, error)
            return
        _require_several(size, error)
        self._search.refuse(size)
        self._learn()
        _warn(size, self.size)

    def succeeded(self, size, seconds=None, memory=None):
        """Learn from a batch.

        Args:
            size: Samples per micro-batch that it ran in.
            seconds: Seconds that it took, or None if it was not measured.
            memory: Bytes in use at most, or None where nobody knows.
        """
        if self._found is not None:
            self._found.succeeded(size)
        elif seconds is not None:
            self._search.record(size, seconds, memory)
            self._learn()

    def _learn(self):
        search = self._search
        self._searched = search.plan()
        if search.size is None:
            smallest = self.plan.candidates[0]
            needed = "more" if smallest.memory is None else format_bytes(smallest.memory)
            raise MemoryError(
                f"memory_limit must hold one sample at a time: got {format_bytes(self._limit)}, "
                f"and {smallest.size} need {needed}. Raise it, or use a smaller model."
            )
        if search.done and isinstance(search, Search) and self._which_segments is not None:
            search = self._search = SegmentSearch(search, self._which_segments == "fewer")
            self._searched = search.plan()
        if search.done:
            self._found = FixedSize(search.size, self.plan, self.segments)
            _logger.info("%s", self.plan.reason)


def _require_several(size, error):
    if size == 1:
        raise MemoryError(
            f"One sample at a time does not fit the memory: {error}. "
            "Use a smaller model, shorter samples, or a larger machine."
        ) from error


def _warn(failed, size):
    _logger.warning(
        "Out of memory with micro-batches of %d: the batch is run again with %d.", failed, size
    )


def _plan_of(size):
    if size == WHOLE:
        return MicrobatchPlan(None, (), None, "Each batch is one micro-batch.")
    return MicrobatchPlan(None, (Candidate(size),), size, "The size was given.")
