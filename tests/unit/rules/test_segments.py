"""A chain of layers is divided where the backward pass needs the least memory."""

import itertools

import numpy as np
import pytest

from tensorflow_ranger.rules.segments import divisions, in_number

pytestmark = pytest.mark.first


def all_ways(joins):
    """Return all segments at the beginning of a chain: each border is there or not."""
    for stop in range(len(joins)):
        inner = [[True] if not may_join else [False, True] for may_join in joins[: stop - 1]]
        for is_border in itertools.product(*inner) if stop else [()]:
            edges = [0, *(i + 1 for i, border in enumerate(is_border) if border), stop]
            yield tuple(itertools.pairwise(edges)) if stop else ()


def memory_of(pairs, kept, handed_on):
    """Return the bytes that the backward pass needs at most."""
    stop = pairs[-1][1] if pairs else 0
    pairs = [*pairs, (stop, len(kept))]
    inputs = sum(handed_on[stop - 1] for _, stop in pairs)
    return inputs + max(sum(kept[start:stop]) for start, stop in pairs)


def chain(seed, length):
    rng = np.random.default_rng(seed)
    kept = rng.integers(0, 100, length).tolist()
    return kept, rng.integers(0, 20, length).tolist(), (rng.random(length) < 0.8).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_no_other_segments_need_less_memory_and_repeat_less(seed):
    kept, handed_on, joins = chain(seed, 1 + seed % 9)
    ways = [
        (memory_of(pairs, kept, handed_on), sum(kept[: pairs[-1][1]]) if pairs else 0)
        for pairs in all_ways(joins)
    ]
    best = {
        memory: repeated
        for memory, repeated in ways
        if not any(m <= memory and r <= repeated and (m, r) != (memory, repeated) for m, r in ways)
    }
    found = divisions(kept, handed_on, joins)
    assert {each.pairs for each in found} <= set(all_ways(joins))
    assert {each.memory: round(each.repeated * max(1, sum(kept))) for each in found} == best
    for each in found:
        assert each.memory == memory_of(each.pairs, kept, handed_on)


def test_they_go_from_nothing_to_the_least_memory():
    found = divisions([16] * 64, [16] * 64, [True] * 64)
    assert found[0].pairs == ()
    assert found[0].memory == 16 * 65
    assert len(found[-1].pairs) == 7
    assert found[-1].memory == 16 * 16
    repeated = [each.repeated for each in found]
    assert repeated == sorted(repeated)
    assert repeated[0] == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_segments_as_were_asked_for(count):
    assert len(in_number([3] * 10, [2] * 10, [True] * 10, count).pairs) == count - 1


def test_layers_that_may_not_join_are_segments_of_their_own():
    assert divisions([5, 5, 6], [1, 1, 1], [False] * 3)[-1].pairs == ((0, 1), (1, 2))


def test_layers_that_are_not_run_again_need_not_join():
    found = divisions([9, 1, 1, 1], [1, 1, 1, 1], [False] * 4)
    assert found[-1].pairs == ((0, 1),)


def test_no_layers_have_no_segments():
    assert [each.pairs for each in divisions([], [], [])] == [()]


def test_a_long_chain_is_near_the_best_of_equal_segments():
    kept, handed_on, _ = chain(0, 300)
    found = divisions(kept, handed_on, [True] * 300)[-1].memory
    for number in range(1, 60):
        edges = [round(300 * i / number) for i in range(number + 1)]
        assert found <= memory_of(list(itertools.pairwise(edges))[:-1], kept, handed_on)
