"""A policy halves a size that runs out of memory, doubles it again later, or searches for it."""

import pytest

from tensorflow_ranger.batch_size import size_policy
from tensorflow_ranger.batch_size.size_policy import WHOLE, FixedSize, SearchedSize

pytestmark = pytest.mark.once

OUT_OF_MEMORY = MemoryError("no memory for 8")


def nothing():
    return 0


def searched(batch=8, limit=None, memory_of=None, held=nothing):
    policy = SearchedSize(limit)
    policy.begin(batch, held, memory_of)
    return policy


def search_to_its_end(policy, seconds_of, batch=8):
    """Let `policy` measure batches until it has chosen; return the sizes that it ran."""
    ran = []
    while policy.is_timed(batch):
        ran.append(policy.size)
        policy.succeeded(policy.size, seconds_of(policy.size))
    return ran


@pytest.fixture
def grow_after(monkeypatch):
    monkeypatch.setattr(size_policy, "GROW_AFTER", 3)
    return 3


def test_a_given_size_stays(grow_after):
    policy = FixedSize(8)
    for _ in range(4 * grow_after):
        assert policy.size == 8
        policy.succeeded(8)
    assert policy.plan.chosen == 8
    assert policy.plan.reason == "The size was given."
    assert not policy.is_timed(8)


def test_a_size_that_fails_is_halved_and_named_in_the_plan(caplog):
    policy = FixedSize(8)
    policy.failed(8, OUT_OF_MEMORY)
    assert policy.size == policy.plan.chosen == 4
    assert {one.size: one.fits for one in policy.plan.candidates} == {4: True, 8: False}
    assert "with micro-batches of 8: the batch is run again with 4" in caplog.text


@pytest.mark.parametrize(("given", "grown"), [(8, [2, 4, 8, 8]), (10, [2, 4, 8, 10])])
def test_it_grows_after_a_while_and_not_beyond_what_was_given(grow_after, given, grown):
    policy = FixedSize(given)
    policy.failed(given, OUT_OF_MEMORY)
    policy.failed(given // 2, OUT_OF_MEMORY)
    sizes = []
    for _ in range(4 * grow_after):
        sizes.append(policy.size)
        policy.succeeded(policy.size)
    assert sizes == [size for size in grown for _ in range(grow_after)]
    assert all(candidate.fits for candidate in policy.plan.candidates)


def test_it_waits_twice_as_long_after_growing_in_vain(grow_after):
    policy = FixedSize(8)
    policy.failed(8, OUT_OF_MEMORY)
    for _ in range(grow_after):
        policy.succeeded(4)
    assert policy.size == 8
    policy.failed(8, OUT_OF_MEMORY)
    for _ in range(2 * grow_after):
        assert policy.size == 4
        policy.succeeded(4)
    assert policy.size == 8


def test_a_failure_counts_the_waiting_anew(grow_after):
    policy = FixedSize(8)
    policy.failed(8, OUT_OF_MEMORY)
    policy.succeeded(4)
    policy.failed(4, OUT_OF_MEMORY)
    for _ in range(grow_after):
        assert policy.size == 2
        policy.succeeded(2)
    assert policy.size == 4


def test_a_whole_batch_is_halved_by_what_it_held():
    policy = FixedSize(WHOLE)
    assert policy.plan.chosen is None
    policy.failed(48, OUT_OF_MEMORY)
    assert policy.size == policy.plan.chosen == 24


@pytest.mark.parametrize("policy", [FixedSize(1), searched(batch=1)])
def test_one_sample_that_fails_is_an_error(policy):
    with pytest.raises(MemoryError, match=r"One sample at a time does not fit.*no memory for 8"):
        policy.failed(1, OUT_OF_MEMORY)


def test_a_search_takes_the_fastest_and_times_no_more():
    policy = searched()
    assert policy.plan.measuring
    ran = search_to_its_end(policy, {8: 3.0, 4: 1.0, 2: 1.1, 1: 1.2}.__getitem__)
    assert policy.size == policy.plan.chosen == 4
    assert set(ran) == {8, 4, 2, 1}
    assert not policy.plan.measuring


def test_a_search_times_batches_of_its_size_alone():
    policy = searched(batch=8)
    assert policy.is_timed(8)
    assert not policy.is_timed(5)
    before = policy.plan
    policy.succeeded(5)
    assert policy.plan == before


def test_a_search_begins_once():
    policy = searched(batch=8)
    policy.begin(64, nothing, None)
    assert policy.size == 8
    assert policy.is_timed(8)


def test_a_size_that_ran_out_of_memory_is_not_chosen_for_its_speed():
    policy = searched()
    policy.succeeded(8, 0.001)
    policy.failed(8, OUT_OF_MEMORY)
    search_to_its_end(policy, lambda size: 1 / size)
    assert policy.size == 4
    assert "8 did not fit" in policy.plan.reason


def test_what_was_found_grows_back_to_what_was_found(grow_after):
    policy = searched()
    search_to_its_end(policy, {8: 3.0, 4: 1.0, 2: 1.1, 1: 1.2}.__getitem__)
    policy.failed(4, OUT_OF_MEMORY)
    assert policy.size == policy.plan.chosen == 2
    for _ in range(3 * grow_after):
        policy.succeeded(policy.size)
    assert policy.size == policy.plan.chosen == 4
    assert {one.size for one in policy.plan.candidates} == {1, 2, 4, 8}


def test_a_limit_below_what_is_held_is_an_error():
    with pytest.raises(MemoryError, match=r"memory_limit is 2.0 MB, and 3.0 MB are in use"):
        searched(limit=2_000_000, held=lambda: 3_000_000)


def test_a_limit_that_one_sample_passes_is_an_error():
    with pytest.raises(MemoryError, match=r"one sample at a time: got 2.0 MB, and 1 need 4.0 MB"):
        searched(limit=2_000_000, memory_of=lambda size: 4_000_000 * size)


def test_a_limit_of_a_known_step_chooses_before_anything_runs():
    policy = searched(limit=4_000_000, memory_of=lambda size: 1_000_000 * size)
    assert policy.size == 4
