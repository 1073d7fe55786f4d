"""A sorted batch is cut where the fewest padded cells are left."""

import itertools

import numpy as np
import pytest

from tensorflow_ranger.rules.division import division

pytestmark = pytest.mark.first


def cells(lengths, counts):
    ends = np.cumsum(counts)
    return sum(
        count * int(lengths[end - count : end].max(axis=0).sum())
        for count, end in zip(counts, ends, strict=True)
    )


def fewest_cells(lengths, size, full):
    """Return the fewest cells of all divisions of the sorted samples."""
    samples, most = len(lengths), size * int(np.sum(full))
    found = np.inf
    for is_end in itertools.product([False, True], repeat=samples - 1):
        edges = [0, *(i + 1 for i, ends in enumerate(is_end) if ends), samples]
        counts = [b - a for a, b in itertools.pairwise(edges)]
        each = [cells(lengths[a:b], [b - a]) for a, b in itertools.pairwise(edges)]
        if len(counts) <= -(-samples // size) and max(each) <= most:
            found = min(found, sum(each))
    return found


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("seed", range(30))
def test_no_division_of_a_small_batch_has_fewer_cells(seed, axes):
    rng = np.random.default_rng(seed)
    samples, size = rng.integers(1, 11), rng.integers(1, 6)
    full = np.full(axes, 12)
    lengths = rng.integers(1, 13, (samples, axes))
    lengths = lengths[np.argsort(-lengths.sum(axis=1))]
    counts = division(lengths, size, full)
    assert sum(counts) == samples
    assert min(counts) >= 1
    assert cells(lengths, counts) == fewest_cells(lengths, size, full)


@pytest.mark.parametrize("seed", range(10))
def test_no_other_order_of_the_samples_has_fewer_cells(seed):
    rng = np.random.default_rng(seed)
    size, full = 2, np.array([9])
    lengths = np.sort(rng.integers(1, 10, (5, 1)), axis=0)[::-1]
    others = [lengths[list(order)] for order in itertools.permutations(range(5))]
    least = min(fewest_cells(other, size, full) for other in others)
    assert cells(lengths, division(lengths, size, full)) == least


@pytest.mark.parametrize(("samples", "size"), [(4096, 64), (1000, 7), (300, 1), (257, 400)])
def test_a_large_batch_is_divided_within_the_limit(samples, size):
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(1, 201, (samples, 1)), axis=0)[::-1]
    counts = division(lengths, size, np.array([200]))
    assert sum(counts) == samples
    assert len(counts) <= -(-samples // size)
    ends = np.cumsum(counts)
    for count, end in zip(counts, ends, strict=True):
        assert count * lengths[end - count, 0] <= size * 200
    equal = [min(size, samples - start) for start in range(0, samples, size)]
    assert cells(lengths, counts) <= cells(lengths, equal)
