"""Where memory stops the search, larger sizes are tried whose layers are run again."""

import numpy as np
import pytest

from tensorflow_ranger.batch_size.search import Search
from tensorflow_ranger.batch_size.segment_search import SegmentSearch
from tensorflow_ranger.rules.segments import Segments, divisions

pytestmark = pytest.mark.once

BATCH = 256


class World:
    """A model on a machine: what each size takes with each choice of segments.

    Args:
        seed: Integer that decides the layers, the machine and what a forward pass costs.
        is_known: Whether memory is known before a step runs.
    """

    def __init__(self, seed, is_known):
        rng = np.random.default_rng(seed)
        kept = rng.integers(10_000, 100_000, 12).tolist()
        handed_on = rng.integers(1_000, 10_000, 12).tolist()
        self.choices = divisions(kept, handed_on, [True] * 12)
        self.is_known = is_known
        self.base = int(rng.integers(10**6, 10**8))
        self.shape = rng.uniform(0.9, 1.1)  # bytes allocated per byte that layers keep
        self.overhead = 10 ** rng.uniform(-1, 2)  # samples whose time a micro-batch costs beside
        self.forward = rng.uniform(0.2, 0.4)

    def bytes_of(self, size, segments=None):
        """Return the bytes that a step needs."""
        segments = self.choices[0] if segments is None else segments
        fused = self.shape if segments.pairs else 1.0
        return int(self.base + 1.2 * fused * size * segments.memory)

    def seconds_of(self, size, segments=None):
        """Return the seconds per sample."""
        segments = self.choices[0] if segments is None else segments
        return (1 + self.overhead / size) * (1 + self.forward * segments.repeated)

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
        goes_on = SegmentSearch(search)
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
            for segments in self.choices
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
