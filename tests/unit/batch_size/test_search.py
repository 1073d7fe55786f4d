import numpy as np
import pytest

from tensorflow_ranger.batch_size.search import Search

pytestmark = pytest.mark.once

UNITS = 10**6


def run(search, seconds_per_sample, batch, memory=lambda size: None, fails=lambda size: False):
    """Run `search` to its end; return the sizes in the order they were run."""
    sizes = []
    for _ in range(200):
        if search.done:
            return sizes
        size = search.size
        if not sizes or sizes[-1] != size:
            sizes.append(size)
        if fails(size):
            search.refuse(size)
        else:
            search.record(size, seconds_per_sample(size) * batch, memory(size))
    raise AssertionError("The search does not end.")


def valley(best, steepness=1.0):
    """Return a time per sample that is least at `best`."""
    return lambda size: max(size / best, best / size) ** steepness


def batches_of(search, seconds_of, batch):
    """Run `search` to its end; return the size of each batch. `seconds_of` has an iterator each."""
    batches = []
    while not search.done:
        batches.append(search.size)
        search.record(search.size, next(seconds_of[search.size]) * batch)
    return batches


def test_the_fastest_size_wins():
    search = Search(256)
    assert run(search, valley(32, 0.5), 256)[:4] == [256, 64, 16, 32]
    assert search.best == search.size == search.plan().chosen == 32


@pytest.mark.parametrize("best", [1, 2, 4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("steepness", [0.3, 0.5, 1.0, 2.0])
def test_any_size_may_be_the_fastest(best, steepness):
    search = Search(256)
    run(search, valley(best, steepness), 256)
    if best == 128:  # is not run: the largest one takes no longer than by a factor
        assert search.best in (128, 256)
    else:
        assert search.best == best


def test_the_search_ends_when_a_size_is_slower_in_two_batches():
    search = Search(4096)
    seconds = {4096: iter([9.0, 1.0]), 1024: iter([9.0, 1.2, 1.2])}
    assert batches_of(search, seconds, 4096) == [4096, 4096, 1024, 1024, 1024]
    assert search.best == 4096


def test_sizes_as_fast_as_the_largest_do_not_end_the_search():
    seconds_of = {256: 1.0, 64: 1.02, 16: 0.5, 4: 0.7, 8: 0.6, 32: 0.8}.__getitem__
    search = Search(256)
    assert run(search, seconds_of, 256)[:4] == [256, 64, 16, 4]
    assert search.best == 16


def test_in_a_valley_a_stride_that_wins_little_is_the_last():
    seconds_of = {256: 1.0, 64: 0.6, 16: 0.55, 32: 0.6}.__getitem__
    assert 4 not in run(Search(256), seconds_of, 256)


def test_of_the_sizes_between_two_one_is_run_that_is_expected_to_be_faster():
    seconds_of = {256: 2.0, 64: 1.0, 16: 1.2, 32: 0.9}.__getitem__
    search = Search(256)
    assert 128 not in run(search, seconds_of, 256)
    assert search.best == 32


def test_one_slow_batch_does_not_end_the_search():
    search = Search(4)
    seconds = {4: iter([9.0] * 4), 1: iter([9.0, 99.0, 8.0]), 2: iter([9.0] * 4)}
    batches_of(search, seconds, 4)
    assert search.best == 1


def test_a_size_beside_the_best_is_timed_again_before_it_is_passed_over():
    search = Search(256)
    seconds = {256: iter([9.0, 2.0, 0.8]), 64: iter([9.0, 1.0, 1.0]), 16: iter([9.0, 2.0, 2.0])}
    assert batches_of(search, seconds, 256)[-2:] == [256, 64]
    assert search.best == 256


def test_a_search_takes_twelve_batches_for_times_like_those_of_a_convolution():
    # microseconds per sample of benchmarks.problems' CNN on JAX and a CPU
    microseconds = {256: 912, 128: 850, 64: 850, 32: 457, 16: 451, 8: 416, 4: 433, 2: 470}
    search, batches = Search(256), 0
    while not search.done:
        batches += 1
        size = search.size
        assert size is not None
        search.record(size, microseconds[size])
    assert search.best == 8
    assert batches <= 12


@pytest.mark.parametrize("seed", range(5))
def test_times_that_now_and_then_double_lead_near_the_best(seed):
    rng = np.random.default_rng(seed)
    losses, counts = [], []
    for _ in range(100):
        overhead, cache = 10 ** rng.uniform(-0.5, 2), 2 ** rng.uniform(1, 8)
        high, sharp = rng.uniform(0, 1), rng.uniform(1, 4)

        def seconds_of(size, overhead=overhead, cache=cache, high=high, sharp=sharp):
            return 1 + overhead / size + high / (1 + (cache / size) ** sharp)

        search, batches = Search(256), 0
        while not search.done:
            noise = rng.normal(1, 0.05) * (2 if rng.uniform() < 0.05 else 1)
            search.record(search.size, seconds_of(search.size) * noise)
            batches += 1
        least = min(map(seconds_of, search.sizes))
        losses.append(seconds_of(search.best) / least)
        counts.append(batches)
    assert np.median(losses) < 1.01
    assert np.quantile(losses, 0.95) < 1.12
    assert np.median(counts) <= 12


def test_of_sizes_that_are_as_fast_the_largest_is_taken():
    search = Search(4)
    run(search, lambda size: 1 + 0.01 * size / 4, 4)
    assert search.best == 4


def test_the_first_run_of_a_size_is_not_timed():
    search = Search(2)
    batches_of(search, {2: iter([0.1, 2.0, 2.0]), 1: iter([1.5, 1.5])}, 2)
    assert search.best == 1


def test_the_whole_batch_is_a_candidate_of_any_size():
    assert run(Search(100), valley(100), 100)[:2] == [100, 32]


def test_one_sample():
    search = Search(1)
    assert run(search, valley(1), 1) == [1]
    assert search.best == 1


def test_memory_known_beforehand_keeps_sizes_from_running():
    search = Search(256, 50 * UNITS, memory_of=lambda size: size * UNITS)
    assert run(search, valley(256), 256)[0] == 32
    assert search.best == 32
    unfit = [candidate.size for candidate in search.plan().candidates if not candidate.fits]
    assert unfit == [64, 128, 256]
    assert "did not fit 50.0 MB" in search.plan().reason


def test_nothing_fits():
    search = Search(4, 1, memory_of=lambda size: size * UNITS)
    assert search.done
    assert search.best is None


def test_sizes_that_fail_are_not_taken():
    search = Search(64)
    run(search, valley(64), 64, fails=lambda size: size > 8)
    assert search.best == 8


def test_unknown_memory_grows_no_further_than_expected_to_fit():
    search = Search(512, 100 * UNITS, base=10 * UNITS)
    sizes = run(search, valley(512), 512, memory=lambda size: (10 + size / 2) * UNITS)
    assert sizes == [32, 64, 128]  # and nothing below, for the largest was the fastest
    assert search.best == 128


def test_unknown_memory_shrinks_if_the_first_size_is_too_large():
    search = Search(512, 20 * UNITS)
    run(search, valley(512), 512, memory=lambda size: size * UNITS)
    assert search.best == 16


def test_unknown_memory_looks_below_the_first_size_if_nothing_larger_is_faster():
    search = Search(512, 10**12)
    sizes = run(search, valley(8), 512, memory=lambda size: size * UNITS)
    assert sizes[:4] == [32, 64, 8, 2]
    assert search.best == 8


def test_what_a_size_needs_is_the_most_that_a_batch_of_it_has_needed():
    search = Search(64, 65 * UNITS, base=10 * UNITS)
    for memory in (40, 30, 30, 30):
        assert search.size == 32
        search.record(32, 1.0, memory * UNITS)
    assert search.size < 32  # 64 are expected to need 70


def test_one_slow_batch_does_not_end_the_way_up():
    search = Search(128, 10**12)
    seconds = {32: [9.0] * 4, 64: [9.0, 99.0, 8.0, 8.0], 128: [9.0, 7.0, 7.0, 7.0]}
    for size in (32, 64, 128):
        for value in seconds[size]:
            assert search.size == size
            search.record(size, value, size * UNITS)
    assert search.done
    assert search.best == 128


def test_a_size_that_fails_after_it_was_timed_is_not_taken():
    search = Search(64)
    for _ in range(2):
        search.record(64, 0.001)
    search.refuse(64)
    assert run(search, valley(64), 64)[0] == 16
    assert search.best == 16


def test_sizes_above_one_that_failed_are_not_tried():
    search = Search(64)
    search.refuse(10)  # a shorter batch, at once
    assert search.size == 8


def test_what_other_ways_are_compared_with_is_timed_twice():
    search = Search(64, 50 * UNITS, memory_of=lambda size: size * UNITS)
    seconds = {32: iter([9.0, 2.0, 1.0]), 8: iter([9.0, 3.0, 3.0])}
    batches_of(search, seconds, 64)
    assert search.timed[32] == 1.0
