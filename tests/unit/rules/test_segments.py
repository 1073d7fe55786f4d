"""A chain of layers is divided where the backward pass needs the least memory."""

import itertools

import numpy as np
import pytest

from tensorflow_ranger.rules.segments import divided, memory_of

pytestmark = pytest.mark.first


def divisions(joins):
    """Return all divisions of a chain: each border is there or not, where layers may join."""
    inner = [[True] if not may_join else [False, True] for may_join in joins[:-1]]
    for is_border in itertools.product(*inner):
        edges = [0, *(i + 1 for i, border in enumerate(is_border) if border), len(joins)]
        yield list(itertools.pairwise(edges))


def chain(seed, length):
    rng = np.random.default_rng(seed)
    kept = rng.integers(0, 100, length).tolist()
    return kept, rng.integers(0, 20, length).tolist(), (rng.random(length) < 0.8).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_no_other_division_needs_less(seed):
    kept, handed_on, joins = chain(seed, 1 + seed % 9)
    found = divided(kept, handed_on, joins)
    assert found in list(divisions(joins))
    least = min(memory_of(each, kept, handed_on) for each in divisions(joins))
    assert memory_of(found, kept, handed_on) == least


def test_equal_layers_are_divided_into_the_root_of_their_number():
    found = divided([16] * 64, [16] * 64, [True] * 64)
    assert len(found) == 8
    assert memory_of(found, [16] * 64, [16] * 64) == 16 * 16


@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_segments_as_were_asked_for(count):
    assert len(divided([3] * 10, [2] * 10, [True] * 10, count)) == count


def test_layers_that_may_not_join_are_segments_of_their_own():
    assert divided([1, 2, 3], [1, 1, 1], [False] * 3, 2) == [(0, 1), (1, 2), (2, 3)]


def test_no_layers_have_no_segments():
    assert divided([], [], []) == []


def test_a_long_chain_is_near_the_best_of_equal_segments():
    kept, handed_on, _ = chain(0, 300)
    joins = [True] * 300
    found = memory_of(divided(kept, handed_on, joins), kept, handed_on)
    for number in range(1, 60):
        edges = [round(300 * i / number) for i in range(number + 1)]
        assert found <= memory_of(list(itertools.pairwise(edges)), kept, handed_on)
