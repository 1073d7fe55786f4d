"""The search for segments of layers to run again, beside the micro-batch size."""

import bisect
import dataclasses

from tensorflow_ranger.batch_size.plan import Candidate, MicrobatchPlan, format_bytes
from tensorflow_ranger.batch_size.search import (
    AS_FAST,
    GIVE_UP,
    TIMED,
    WARM_UP,
    Search,
    is_much_slower,
)
from tensorflow_ranger.rules.segments import Segments

SIZES = 2  # that are run with other segments than before
SEGMENTATIONS = 3  # of one size that are run
FEW = 4  # samples: times of micro-batches that small do not predict those of larger ones
RUNS = 4  # in all
CHECKS = 8  # steps whose memory is asked for
FORWARD = 1 / 3  # of the time, if the backward pass takes twice the forward pass'
PROMISING = 1.15  # of the best time: other segments of the same size may still be the fastest


@dataclasses.dataclass
class _Trial:
    """A size with the segments that are run again."""

    size: int
    segments: Segments
    predicted: int  # bytes
    expected: float  # seconds per sample
    memory: int | None = None
    fits: bool = True
    times: list[float] = dataclasses.field(default_factory=list)

    @property
    def in_words(self):
        """The number of segments."""
        count = len(self.segments.pairs)
        return "1 segment" if count == 1 else f"{count} segments"

    @property
    def is_timed(self):
        """Whether it fits and a batch was timed."""
        return self.fits and len(self.times) > WARM_UP

    @property
    def seconds(self):
        """Least seconds per sample of the batches timed."""
        return min(self.times[WARM_UP:])


class SegmentSearch:
    """Goes on where a `Search` has ended, and answers the same calls.

    All sizes of that search ran the same segments: none, or those that need the least memory. In
    the first case larger sizes fit if layers are run again; in the second one all sizes may fit
    with fewer layers run again. What is expected is

        seconds per sample = (a + b / size) * (1 + FORWARD * fraction of the layers run again)
        bytes = beside + rate * size * (bytes kept of a sample),

    where `a` and `b` follow from two sizes measured near it, and the bytes beside and the rate from
    the two largest ones. Of each size, the segments that repeat least among those that fit are
    expected to be fastest. The size that is fastest with them is run, and a second one if it is
    expected to be faster still. Where they take longer than expected, segments that repeat more may
    be faster, by how the framework schedules the work: up to `SEGMENTATIONS` of a size are run,
    each time those whose fraction differs most. At most `RUNS` candidates are run.

    The rate is corrected after each run, or before it where memory is known by then. Nothing is run
    where no other size would be much faster even if to run layers again cost nothing.

    Args:
        search: A `Search` that has ended, with sizes timed.
        repeats: Whether its sizes ran the segments that need the least memory.
    """

    def __init__(self, search, repeats=False):
        self._search: Search = search
        self._repeats = repeats
        self.batch = search.batch
        self._limit = search.limit
        self._sizes = search.sizes if repeats else search.larger
        self._choices = []
        self._memory_of = None
        self._slope = 0.0  # bytes of a sample with the segments of the sizes in `search`
        self._rates = {}  # bytes needed per byte that layers keep, by those of a sample
        self._seconds_kept = dict(search.timed)  # per sample, of sizes that keep everything
        self._checked: list[_Trial] = []
        self._run: list[_Trial] = []
        self._current: _Trial | None = None
        may_gain = repeats or any(map(self._may_gain, self._sizes))
        self.done = self._limit is None or not may_gain

    def open(self, choices, memory_of):
        """Begin with the first candidate.

        Args:
            choices: List of `Segments`: the first one repeats nothing, each one repeats more than
                the one before, and needs less memory.
            memory_of: Function ``size, segments -> bytes`` that knows beforehand, or None where
                nobody does.
        """
        self._choices, base = choices[1:], choices[0]
        if self._repeats and self._choices:
            base = self._choices.pop()
        self._memory_of = memory_of
        whole, slope = base.memory, self._search.bytes_per_sample()
        if slope < whole and (memory_of is None or slope <= 0):
            slope = whole  # what layers keep is there, whatever was measured
        self._slope = slope
        self._rates[0] = slope / max(1.0, whole)
        self._seconds_kept = {
            size: seconds / _cost(base) for size, seconds in self._seconds_kept.items()
        }
        self._advance()

    @property
    def is_open(self):
        """Whether `open` was called."""
        return bool(self._rates)

    @property
    def size(self):
        """The size to run next: that of the candidate at hand, or of the best."""
        trial = self._current or self._winner
        return self._search.best if trial is None else trial.size

    @property
    def segments(self):
        """The `Segments` to run again with that size, or None for those of the `Search`."""
        trial = self._current or self._winner
        return None if trial is None else trial.segments

    def record(self, size, seconds, memory=None):
        """Learn that a batch took `seconds` and `memory` bytes."""
        trial = self._current
        if trial is None or size != trial.size:
            return
        trial.times.append(seconds / self.batch)
        if memory is not None:
            trial.memory = max(memory, trial.memory or 0)
            if trial.memory > self._limit:
                trial.fits = False
                self._end(trial)
                return
        best = [self._least, *(each.seconds for each in self._timed)]
        if len(trial.times) == WARM_UP + TIMED or is_much_slower(trial.times, best):
            kept = trial.seconds / _cost(trial.segments)
            self._seconds_kept[size] = min(kept, self._seconds_kept.get(size, kept))
            self._end(trial)

    def refuse(self, size):
        """Learn that the candidate at hand ran out of memory."""
        if self._current is None:  # what the `Search` found did so before
            self.done = True
            return
        self._current.fits = False
        self._sizes = [each for each in self._sizes if each < size]
        self._end(self._current)

    def plan(self):
        """Return both searches so far as a `MicrobatchPlan`."""
        shown = [*self._run, *(each for each in self._checked if not each.fits)]
        if self._current is not None:
            shown.append(self._current)
        found = [
            Candidate(
                each.size,
                each.memory,
                each.seconds if each.is_timed else None,
                each.fits,
                len(each.segments.pairs),
                each.predicted if self._memory_of is None else None,
            )
            for each in {id(each): each for each in shown}.values()
        ]
        candidates = sorted(
            [*self._search.plan().candidates, *found],
            key=lambda each: (each.size, each.segments),
        )
        return MicrobatchPlan(
            self.batch,
            tuple(candidates),
            self.size,
            self._reason(),
            not self.done,
            segments=0 if self.segments is None else len(self.segments.pairs),
        )

    def _reason(self):
        if not self.done:
            which = "with fewer layers" if self._repeats else "if layers are"
            return (
                f"Still measuring: {self.size} samples at a time are next, of the sizes that fit "
                f"{which} run again."
            )
        winner, reason = self._winner, self._search.plan().reason
        if winner is not None:
            before = "the least memory is needed" if self._repeats else "all is kept"
            return (
                f"{winner.size} of {self.batch} samples at a time are the fastest per sample "
                f"within {format_bytes(self._limit)}, with layers run again in "
                f"{winner.in_words}: they take {winner.seconds / self._least:.2f} of the time of "
                f"{self._search.best}, with which {before}."
            )
        for each in self._timed:
            reason += (
                f" {each.size} fit with layers run again in {each.in_words}, and take "
                f"{each.seconds / self._least:.2f} of the time."
            )
        return reason

    @property
    def _least(self):
        """Seconds per sample of the best size of the `Search`."""
        return self._search.timed[self._search.best]

    @property
    def _timed(self):
        return [each for each in self._run if each.is_timed]

    @property
    def _fastest(self):
        return min(self._timed, key=lambda each: each.seconds, default=None)

    @property
    def _winner(self):
        best = self._fastest
        return best if best is not None and best.seconds * AS_FAST < self._least else None

    def _seconds(self, size):
        """Return the seconds per sample that `size` is expected to take if it keeps everything."""
        known = self._seconds_kept
        if size in known:
            return known[size]
        sizes = sorted(known)
        place = max(0, bisect.bisect(sizes, size) - 2)  # of two neighbors, larger ones if possible
        *below, above = sizes[place : place + 2]
        if not below:
            return known[above] * above / size
        per_micro_batch = (known[below[0]] - known[above]) / (1 / below[0] - 1 / above)
        return known[above] + max(0.0, per_micro_batch) * (1 / size - 1 / above)

    def _may_gain(self, size):
        # Libraries multiply a few rows by other kernels than many.
        is_guess = max(self._seconds_kept) <= FEW
        return is_guess or self._seconds(size) * GIVE_UP <= self._least

    def _end(self, trial):
        if trial.memory is not None:
            self._correct(trial)
        self._run.append(trial)
        self._advance()

    def _correct(self, trial):
        activations = trial.memory - self._beside(trial.size)
        kept = trial.segments.memory
        self._rates[kept] = activations / (trial.size * kept)

    def _predicted(self, size, segments):
        """Return the bytes that are expected, at the rate of the most similar segments measured."""
        measured = [each for each in self._rates if each] or [0]
        nearest = min(measured, key=lambda each: abs(each - segments.memory))
        return int(self._beside(size) + self._rates[nearest] * size * segments.memory)

    def _beside(self, size):
        """Return the bytes that `size` needs beside what it keeps of its samples."""
        beside = self._search.bytes_of(size, self._slope) - self._slope * size
        return beside if self._memory_of else max(beside, self._search.base)

    def _advance(self):
        self._current = self._next()
        self.done = self._current is None

    def _next(self):
        """Return the `_Trial` to run, or None if none may be faster than the best."""
        if self._memory_of is None:
            return self._proposed()
        while True:
            trial = self._proposed()
            if trial is None:
                return None
            same = [
                each
                for each in self._checked
                if (each.size, each.segments) == (trial.size, trial.segments)
            ]
            if same:
                return same[0]
            if len(self._checked) == CHECKS:
                left = [each for each in self._checked if each.fits and each not in self._run]
                return min(left, key=lambda each: each.expected, default=None)
            trial.memory = self._memory_of(trial.size, trial.segments)
            trial.fits = trial.memory <= self._limit
            self._checked.append(trial)
            self._correct(trial)

    def _proposed(self):
        if len(self._run) >= RUNS:
            return None
        sizes = {each.size for each in self._run}
        other = self._other_size() if len(sizes) < SIZES else None
        return self._other_segments() if other is None else other

    def _other_size(self):
        """Return the `_Trial` of a size not run yet that is expected to be fastest."""
        done = {each.size for each in self._run if each.fits}
        sizes = [size for size in self._sizes if size not in done and self._may_gain(size)]
        trials = [fitting[0] for fitting in map(self._fitting, sizes) if fitting]
        trial = min(trials, key=lambda each: each.expected, default=None)
        best = self._winner
        best = self._least if best is None else best.seconds
        return trial if trial is not None and (not self._timed or trial.expected < best) else None

    def _other_segments(self):
        """Return the `_Trial` of the fastest size whose segments differ most from those run."""
        best = self._fastest
        if best is None or best.size not in self._sizes:
            return None
        ran = [each for each in self._run if each.size == best.size]
        is_as_expected = ran[0].is_timed and ran[0].seconds <= AS_FAST * ran[0].expected
        is_slow = best.seconds > PROMISING * self._least
        if is_as_expected or is_slow or sum(each.is_timed for each in ran) >= SEGMENTATIONS:
            return None

        def distance(trial):
            others = (each.segments.repeated for each in ran)
            return min(abs(trial.segments.repeated - other) for other in others)

        trial = max(self._fitting(best.size), key=distance, default=None)
        return trial if trial is not None and distance(trial) else None

    def _fitting(self, size):
        """Return a `_Trial` for each of the segments with which `size` is expected to fit."""
        refused = [each.segments for each in self._checked if each.size == size and not each.fits]
        trials = [
            _Trial(size, each, self._predicted(size, each), self._seconds(size) * _cost(each))
            for each in self._choices
            if each not in refused
        ]
        return [trial for trial in trials if trial.predicted <= self._limit]


def _cost(segments):
    """Return the expected time in units of the time that keeping everything takes."""
    return 1 + FORWARD * segments.repeated
