"""The search for larger micro-batches that fit because layers are run again."""

import dataclasses
import statistics

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

RUNS = 2  # candidates that are run
CHECKS = 4  # steps whose memory is asked for before one is run
FORWARD = 1 / 3  # of the time, if the backward pass takes twice the forward pass'


@dataclasses.dataclass
class _Trial:
    """A size with the segments that are run again."""

    size: int
    segments: Segments
    predicted: int  # bytes
    expected: float = 0.0  # seconds per sample
    memory: int | None = None
    fits: bool = True
    times: list[float] = dataclasses.field(default_factory=list)

    @property
    def in_words(self):
        """The number of segments."""
        count = len(self.segments.pairs)
        return "1 segment" if count == 1 else f"{count} segments"

    @property
    def cost(self):
        """Expected time in units of the time of the same size that keeps everything."""
        return 1 + FORWARD * self.segments.repeated

    @property
    def is_timed(self):
        """Whether it fits and a batch was timed."""
        return self.fits and len(self.times) > WARM_UP

    @property
    def seconds(self):
        """Median seconds per sample of the batches timed."""
        return statistics.median(self.times[WARM_UP:])


class SegmentSearch:
    """Goes on where memory stopped a `Search`, and answers the same calls.

    Larger sizes fit if layers are run again: of each size, those segments are considered that
    repeat least among those expected to fit. What is expected is

        seconds per sample = (a + b / size) * (1 + FORWARD * fraction of the layers run again)
        bytes = beside + rate * size * (bytes kept of a sample),

    where `a`, `b`, the bytes beside and the rate follow from the two largest sizes measured. The
    candidate that is expected to be fastest is run, and a second one if that is expected to be
    faster still. Where memory is known beforehand, it is asked for, and the rate corrected, before
    anything is run; elsewhere after the first run. Nothing is run where larger sizes would hardly
    be faster if to run layers again cost nothing.

    Args:
        search: A `Search` that has ended, with sizes timed.
    """

    def __init__(self, search):
        self._search: Search = search
        self.batch = search.batch
        self._limit = search.limit
        self._sizes = search.larger
        self._choices = []
        self._memory_of = None
        self._slope = 0.0  # bytes of a sample where everything is kept
        self._rate = 0.0  # bytes needed per byte that layers keep
        self._seconds_kept = dict(search.timed)  # per sample, of sizes that keep everything
        self._checked: list[_Trial] = []
        self._run: list[_Trial] = []
        self._current: _Trial | None = None
        self.done = self._limit is None or not any(map(self._may_gain, self._sizes))

    def open(self, choices, memory_of):
        """Begin with the first candidate.

        Args:
            choices: List of `Segments`: the first one repeats nothing, each one repeats more than
                the one before, and needs less memory.
            memory_of: Function ``size, segments -> bytes`` that knows beforehand, or None where
                nobody does.
        """
        self._choices, self._memory_of = choices, memory_of
        whole, slope = choices[0].memory, self._search.bytes_per_sample()
        if slope < whole and (memory_of is None or slope <= 0):
            slope = whole  # what layers keep is there, whatever was measured
        self._slope, self._rate = slope, slope / max(1.0, whole)
        self._advance()

    @property
    def is_open(self):
        """Whether `open` was called."""
        return bool(self._choices)

    @property
    def size(self):
        """The size to run next: that of the candidate at hand, or of the best."""
        trial = self._current or self._winner
        return self._search.best if trial is None else trial.size

    @property
    def segments(self):
        """The `Segments` to run again with that size, or None to keep what all layers make."""
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
        others = [self._least, *(each.seconds for each in self._timed)]
        if len(trial.times) == WARM_UP + TIMED or is_much_slower(trial.times, others):
            self._seconds_kept[size] = trial.seconds / trial.cost
            self._end(trial)

    def refuse(self, size):
        """Learn that the candidate at hand ran out of memory."""
        if self._current is None:  # what kept everything did so before
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
            return (
                f"Still measuring: {self.size} samples at a time are next, of the sizes that fit "
                "if layers are run again."
            )
        winner, reason = self._winner, self._search.plan().reason
        if winner is not None:
            return (
                f"{winner.size} of {self.batch} samples at a time are the fastest per sample "
                f"within {format_bytes(self._limit)}, with layers run again in "
                f"{winner.in_words}: they take {winner.seconds / self._least:.2f} of the time of "
                f"{self._search.best}, with which all is kept."
            )
        for each in self._timed:
            reason += (
                f" {each.size} fit with layers run again in {each.in_words}, and take "
                f"{each.seconds / self._least:.2f} of the time."
            )
        return reason

    @property
    def _least(self):
        """Seconds per sample of the best size that keeps everything."""
        return self._search.timed[self._search.best]

    @property
    def _timed(self):
        return [each for each in self._run if each.is_timed]

    @property
    def _winner(self):
        best = min(self._timed, key=lambda each: each.seconds, default=None)
        return best if best is not None and best.seconds * AS_FAST < self._least else None

    def _seconds(self, size):
        """Return the seconds per sample that `size` is expected to take if it keeps everything."""
        known = self._seconds_kept
        *below, above = sorted(known)[-2:]
        if not below:
            return known[above] * above / size
        per_micro_batch = (known[below[0]] - known[above]) / (1 / below[0] - 1 / above)
        return known[above] + max(0.0, per_micro_batch) * (1 / size - 1 / above)

    def _may_gain(self, size):
        return self._seconds(size) * GIVE_UP <= self._least

    def _end(self, trial):
        if trial.memory is not None:
            self._correct(trial)
        self._run.append(trial)
        self._advance()

    def _correct(self, trial):
        activations = trial.memory - self._beside(trial.size)
        self._rate = activations / (trial.size * trial.segments.memory)

    def _beside(self, size):
        """Return the bytes that `size` needs beside what it keeps of its samples."""
        return self._search.bytes_of(size, self._slope) - self._slope * size

    def _advance(self):
        self._current = self._next() if len(self._run) < RUNS else None
        self.done = self._current is None

    def _next(self):
        """Return the `_Trial` to run, or None if none may be faster than the best."""
        if self._memory_of is None:
            return self._fastest()
        for _ in range(CHECKS):
            trial = self._fastest()
            if trial is None:
                return None
            same = [
                each
                for each in self._checked
                if (each.size, each.segments) == (trial.size, trial.segments)
            ]
            if same:
                return same[0]
            trial.memory = self._memory_of(trial.size, trial.segments)
            trial.fits = trial.memory <= self._limit
            self._checked.append(trial)
            self._correct(trial)
        left = [each for each in self._checked if each.fits and each not in self._run]
        return min(left, key=lambda each: each.expected, default=None)

    def _fastest(self):
        """Return the `_Trial` that is expected to be fastest of those expected to fit."""
        done = {each.size for each in self._run if each.fits}
        sizes = [size for size in self._sizes if size not in done and self._may_gain(size)]
        trials = [trial for trial in map(self._trial, sizes) if trial is not None]
        trial = min(trials, key=lambda each: each.expected, default=None)
        best = self._winner
        best = self._least if best is None else best.seconds
        is_first = len(self._seconds_kept) == len(self._search.timed)
        return trial if trial is not None and (is_first or trial.expected < best) else None

    def _trial(self, size):
        refused = [each.segments for each in self._checked if each.size == size and not each.fits]
        for segments in self._choices[1:]:
            if segments in refused:
                continue
            predicted = int(self._beside(size) + self._rate * size * segments.memory)
            if predicted <= self._limit:
                trial = _Trial(size, segments, predicted)
                trial.expected = self._seconds(size) * trial.cost
                return trial
        return None
