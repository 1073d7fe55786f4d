"""Where memory stops the search, larger sizes are tried whose layers are run again."""

from typing import Any

import numpy as np
import pytest

from tensorflow_ranger.batch_size.search import Search
from tensorflow_ranger.batch_size.segment_search import RUNS, SegmentSearch
from tensorflow_ranger.rules.segments import Segments, divisions

pytestmark = pytest.mark.once

BATCH = 256


class World:
    """A model on a machine: what each size takes with each choice of segments.

    Args:
        seed: Integer that decides the layers, the machine and what a forward pass costs.
        is_known: Whether memory is known before a step runs.
        repeats: Whether all sizes run layers again, the first ones those that need least memory.
        uneven: What a step takes more, as a fraction, that repeats less than 0.4 of the layers.
    """

    def __init__(self, seed, is_known, repeats=False, uneven=0.0):
        rng = np.random.default_rng(seed)
        kept = rng.integers(10_000, 100_000, 12).tolist()
        handed_on = rng.integers(1_000, 10_000, 12).tolist()
        self.choices = divisions(kept, handed_on, [True] * 12)
        self.is_known = is_known
        self.repeats = repeats
        self.first = self.choices[-1 if repeats else 0]
        self.uneven = uneven
        self.base = int(rng.integers(10**6, 10**8))
        self.shape = rng.uniform(0.9, 1.1)  # bytes allocated per byte that layers keep
        self.overhead = 10 ** rng.uniform(-1, 2)  # samples whose time a micro-batch costs beside
        self.forward = rng.uniform(0.2, 0.4)

    def bytes_of(self, size, segments=None):
        """Return the bytes that a step needs."""
        segments = self.first if segments is None else segments
        fused = self.shape if segments.pairs else 1.0
        return int(self.base + 1.2 * fused * size * segments.memory)

    def seconds_of(self, size, segments=None):
        """Return the seconds per sample."""
        segments = self.first if segments is None else segments
        uneven = 1 + self.uneven * (0 < segments.repeated < 0.4)
        return uneven * (1 + self.overhead / size) * (1 + self.forward * segments.repeated)

    def limits(self, rng, count):
        """Yield limits between what one sample and what the batch needs."""
        low, high = self.bytes_of(1), self.bytes_of(BATCH)
        for share in rng.uniform(0, 1, count):
            yield int(low * (high / low) ** share)

    def search(self, limit):
        """Return the batches run, and the size and segments that were found for `limit`."""
        known = self.bytes_of if self.is_known else None
        search, ran = Search(BATCH, limit, known, self.base), []
        while not search.done:
            ran.append((search.size, None))
            self._run(search, search.size, None)
        goes_on = SegmentSearch(search, self.repeats)
        if not goes_on.done:
            goes_on.open(self.choices, known)
        while not goes_on.done:
            ran.append((goes_on.size, goes_on.segments))
            self._run(goes_on, goes_on.size, goes_on.segments)
        return ran, goes_on

    def _run(self, search, size, segments):
        memory = None if self.is_known else self.bytes_of(size, segments)
        search.record(size, BATCH * self.seconds_of(size, segments), memory)

    def best_on_grid(self, limit):
        """Return the least seconds per sample of all sizes and segments within `limit`."""
        sizes = [2**power for power in range(BATCH.bit_length())]
        return min(
            self.seconds_of(size, segments)
            for size in sizes
            for segments in self.choices[self.repeats :]
            if self.bytes_of(size, segments) <= limit
        )


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "measured"])
@pytest.mark.parametrize("seed", range(10))
def test_limits_are_kept_and_the_time_is_near_the_best_of_the_grid(seed, is_known):
    world = World(seed, is_known)
    for limit in world.limits(np.random.default_rng(seed), 20):
        ran, found = world.search(limit)
        assert world.bytes_of(found.size, found.segments) <= limit
        assert world.seconds_of(found.size, found.segments) <= 1.05 * world.best_on_grid(limit)
        assert len(ran) <= 35


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "measured"])
@pytest.mark.parametrize("seed", range(10))
def test_where_repeating_little_takes_long_the_time_is_near_the_best(seed, is_known):
    world = World(seed, is_known, uneven=0.13)
    for limit in world.limits(np.random.default_rng(seed), 20):
        ran, found = world.search(limit)
        assert world.bytes_of(found.size, found.segments) <= limit
        assert world.seconds_of(found.size, found.segments) <= 1.06 * world.best_on_grid(limit)
        assert len({cell for cell in ran if cell[1] is not None}) <= RUNS


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "measured"])
@pytest.mark.parametrize("seed", range(10))
def test_of_the_layers_that_are_run_again_at_any_rate_as_few_are_as_fit(seed, is_known):
    world = World(seed, is_known, repeats=True)
    for limit in world.limits(np.random.default_rng(seed), 20):
        ran, found = world.search(limit)
        segments = world.first if found.segments is None else found.segments
        assert segments.pairs
        assert world.bytes_of(found.size, segments) <= limit
        assert world.seconds_of(found.size, segments) <= 1.05 * world.best_on_grid(limit)
        assert len(ran) <= 40


KEPT, SOME, LEAST = CHOICES = [
    Segments((), 1000, 0.0),
    Segments(((0, 2),), 600, 0.5),
    Segments(((0, 2), (2, 4)), 250, 0.9),
]


def ended(limit, seconds_of, batch=64, memory_of=None, fails=lambda size: False):
    """Return a `Search` that has ended; a sample takes 1000 bytes beside the 50,000 of a model."""
    search: Any = Search(batch, limit, memory_of, 50_000)
    while not search.done:
        if fails(search.size):
            search.refuse(search.size)
        else:
            memory = None if memory_of else 50_000 + 1000 * search.size
            search.record(search.size, batch * seconds_of(search.size), memory)
    return search


def inverse(size):
    return 1 / size


def measured(search, seconds, memory, batches=4):
    """Let `search` run its candidate."""
    for _ in range(batches):
        search.record(search.size, search.batch * seconds, memory)


def test_nothing_is_run_again_where_the_whole_batch_fits():
    assert SegmentSearch(ended(200_000, inverse)).done


def test_times_of_few_samples_say_nothing_of_larger_sizes():
    search = SegmentSearch(ended(54_000, lambda size: 1.0))
    search.open(CHOICES, None)
    assert (search.size, search.segments) == (8, LEAST)
    measured(search, 0.1, 52_000)
    assert (search.size, search.segments) == (16, LEAST)


def test_nothing_is_run_again_where_larger_sizes_gain_nothing():
    assert SegmentSearch(ended(82_000, lambda size: 1.0)).done


@pytest.mark.parametrize("limit", [None, 10**6])
def test_nothing_is_run_again_where_nobody_knows_the_memory(limit):
    search: Any = Search(8, limit)
    search.refuse(8)
    while not search.done:
        search.record(search.size, inverse(search.size))
    assert SegmentSearch(search).done


def test_without_a_limit_what_has_fitted_is_the_limit():
    search = SegmentSearch(ended(None, inverse, fails=lambda size: size > 16))
    search.open(CHOICES, None)
    assert (search.size, search.segments) == (64, LEAST)
    measured(search, 0.01, 66_001)
    assert search.plan().candidates[-1].fits is False


def test_as_little_is_run_again_as_the_limit_allows():
    search = SegmentSearch(ended(90_000, inverse))
    search.open(CHOICES, None)
    assert (search.size, search.segments) == (64, SOME)


def test_what_needs_more_than_predicted_is_run_with_more_segments():
    search = SegmentSearch(ended(90_000, inverse))
    search.open(CHOICES, None)
    measured(search, 0.01, 95_000, batches=1)
    assert (search.size, search.segments) == (64, LEAST)
    measured(search, 0.01, 70_000)
    assert search.done
    assert (search.size, search.segments) == (64, LEAST)
    predicted = [(each.predicted, each.memory) for each in search.plan().candidates[-2:]]
    assert predicted == [(88_400, 95_000), (68_750, 70_000)]


def test_a_known_step_runs_only_if_it_fits():
    def memory_of(size, segments=KEPT):
        return int(50_000 + size * segments.memory * (1.3 if segments.pairs else 1))

    search = SegmentSearch(ended(90_000, inverse, memory_of=memory_of))
    search.open(CHOICES, memory_of)
    assert (search.size, search.segments) == (64, LEAST)
    refused = [each for each in search.plan().candidates if each.segments == 1]
    assert [(each.size, each.memory, each.fits) for each in refused] == [(64, 99_920, False)]


def test_a_candidate_that_ran_out_of_memory_is_not_followed_by_a_larger_one():
    search = SegmentSearch(ended(90_000, inverse))
    search.open(CHOICES, None)
    search.refuse(64)
    assert search.done
    assert (search.size, search.segments) == (32, None)
    assert "fastest per sample of 2 sizes timed" in search.plan().reason


def test_the_plan_says_why_layers_are_run_again():
    search = SegmentSearch(ended(90_000, inverse))
    search.open(CHOICES, None)
    assert "64 samples at a time are next, of the sizes that fit if" in search.plan().reason
    measured(search, 0.025, 90_000)
    assert (search.size, search.segments) == (64, LEAST)
    measured(search, 0.03, 66_000)
    assert search.plan().reason == (
        "64 of 64 samples at a time are the fastest per sample within 90.0 KB, with layers run "
        "again in 1 segment: they take 0.80 of the time of 32, with which all is kept."
    )
    assert search.plan().segments == 1


def test_the_plan_says_why_layers_are_not_run_again():
    search = SegmentSearch(ended(90_000, inverse))
    search.open(CHOICES, None)
    measured(search, 0.05, 90_000, batches=3)
    assert (search.size, search.segments) == (32, None)
    assert search.plan().reason.endswith(
        " 64 fit with layers run again in 1 segment, and take 1.60 of the time."
    )


def test_segments_that_repeat_more_are_taken_where_they_are_faster():
    search = SegmentSearch(ended(90_000, inverse))
    search.open(CHOICES, None)
    measured(search, 0.025, 88_000)
    assert (search.size, search.segments) == (64, LEAST)
    measured(search, 0.02, 66_000)
    assert search.done
    assert (search.size, search.segments) == (64, LEAST)
    assert "2 segments: they take 0.64 of the time" in search.plan().reason


def test_segments_that_repeat_more_are_not_run_where_the_first_ones_are_slow():
    search = SegmentSearch(ended(90_000, inverse))
    search.open(CHOICES, None)
    measured(search, 0.037, 88_000)
    assert search.done
    assert (search.size, search.segments) == (32, None)


def test_where_all_sizes_run_layers_again_fewer_are_while_the_limit_allows():
    search = SegmentSearch(ended(90_000, lambda size: 1 + 0.01 / size), repeats=True)
    choices = [Segments((), 4000, 0.0), KEPT._replace(pairs=((0, 2),), memory=2000), LEAST]
    choices[2] = LEAST._replace(memory=1000)
    search.open(choices, None)
    assert (search.size, search.segments) == (16, choices[1])
    assert "with fewer layers run again" in search.plan().reason
    measured(search, 0.75, 82_000)
    assert search.done
    assert (search.size, search.segments) == (16, choices[1])
    assert search.plan().reason == (
        "16 of 64 samples at a time are the fastest per sample within 90.0 KB, with layers run "
        "again in 1 segment: they take 0.75 of the time of 32, with which the least memory is "
        "needed."
    )


def test_where_all_sizes_run_layers_again_none_keeps_everything():
    search = SegmentSearch(ended(10**6, inverse), repeats=True)
    search.open([KEPT, LEAST], None)
    assert search.done
    assert (search.size, search.segments) == (64, None)
