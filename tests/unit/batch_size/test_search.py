import pytest

from tensorflow_ranger.batch_size.search import Search

pytestmark = pytest.mark.once

UNITS = 10**6


def run(search, seconds_per_sample, batch, memory=lambda size: None, fails=lambda size: False):
    """Run `search` to its end; return the sizes in the order they were run."""
    sizes = []
    while not search.done:
        size = search.size
        if not sizes or sizes[-1] != size:
            sizes.append(size)
        if fails(size):
            search.refuse(size)
        else:
            search.record(size, seconds_per_sample(size) * batch, memory(size))
    return sizes


def valley(best, steepness=1.0):
    """Return a time per sample that is least at `best`."""
    return lambda size: max(size / best, best / size) ** steepness


def test_the_fastest_size_wins():
    search = Search(256)
    assert run(search, valley(32, 0.2), 256) == [256, 128, 64, 32, 16, 8]
    assert search.best == search.size == search.plan().chosen == 32


def test_the_search_ends_when_sizes_get_slower():
    assert run(Search(4096), valley(4096, 0.2), 4096) == [4096, 2048, 1024]


def test_the_search_ends_at_once_when_a_size_is_much_slower():
    search, batches = Search(4096), []
    while not search.done:
        batches.append(search.size)
        search.record(search.size, 4096 * valley(4096)(search.size))
    assert batches == [4096] * 4 + [2048] * 3
    assert search.best == 4096


def test_one_slow_batch_does_not_end_the_search():
    search = Search(4)
    for size, seconds in ((4, [9.0, 9, 9, 9]), (2, [9.0, 99, 8, 8]), (1, [9.0, 9, 9, 9])):
        for value in seconds:
            assert search.size == size
            search.record(size, value)
    assert search.best == 2


def test_of_sizes_that_are_as_fast_the_largest_is_taken():
    search = Search(4)
    run(search, lambda size: 1 + 0.01 * size / 4, 4)
    assert search.best == 4


def test_the_first_run_of_a_size_is_not_timed():
    search = Search(2)
    for size, seconds in ((2, [100.0, 1, 1, 3]), (1, [1.1, 1.1, 1.1, 1.1])):
        for value in seconds:
            assert search.size == size
            search.record(size, value)
    assert search.best == 2


def test_the_whole_batch_is_a_candidate_of_any_size():
    assert run(Search(100), valley(100), 100)[:2] == [100, 64]


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
    assert sizes == [32, 64, 16, 8, 4]
    assert search.best == 8


def test_sizes_above_one_that_failed_are_not_tried():
    search = Search(64)
    search.refuse(10)  # a shorter batch, at once
    assert search.size == 8
