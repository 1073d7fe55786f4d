"""A policy halves a size that runs out of memory, doubles it again later, or searches for it."""

import pytest

from tensorflow_ranger.batch_size import size_policy
from tensorflow_ranger.batch_size.size_policy import WHOLE, FixedSize, SearchedSize
from tensorflow_ranger.rules.segments import Segments

pytestmark = pytest.mark.once

OUT_OF_MEMORY = MemoryError("no memory for 8")


def nothing():
    return 0


def nothing_to_repeat():
    return [Segments((), 100, 0.0)]


def searched(batch=8, limit=None, memory_of=None, held=nothing, **settings):
    policy = SearchedSize(limit, **settings)
    policy.begin(batch, held, memory_of, nothing_to_repeat)
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
    ran = search_to_its_end(policy, {8: 1.6, 4: 1.0, 2: 1.3, 1: 1.8}.__getitem__)
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
    policy.begin(64, nothing, None, nothing_to_repeat)
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
    search_to_its_end(policy, {8: 1.6, 4: 1.0, 2: 1.3, 1: 1.8}.__getitem__)
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


MEGABYTE = 10**6
CHOICES = [Segments((), MEGABYTE, 0.0), Segments(((0, 1), (1, 2)), MEGABYTE / 4, 0.8)]


def memory_of(size, segments=CHOICES[0]):
    return int(size * segments.memory)


def with_segments(limit=2 * MEGABYTE, **settings):
    """Return a policy that has timed all sizes that fit, each much faster than the one before."""
    policy = searched(8, limit, memory_of, segments="more", **settings)
    while policy.size <= 2 and policy.plan.candidates and policy.segments is None:
        policy.begin(8, nothing, memory_of, lambda: CHOICES)
        if policy.segments is None:
            policy.succeeded(policy.size, 1 / policy.size)
    return policy


def test_larger_sizes_are_measured_with_layers_run_again():
    policy = with_segments()
    assert (policy.size, policy.segments) == (8, CHOICES[1])
    assert policy.plan.measuring
    while policy.is_timed(8):
        policy.begin(8, nothing, memory_of, lambda: CHOICES)
        policy.succeeded(8, 1 / 8)
    assert (policy.size, policy.segments) == (8, CHOICES[1])
    assert (policy.plan.chosen, policy.plan.segments) == (8, 2)
    assert not policy.plan.measuring


def test_layers_are_run_again_with_half_the_size_that_was_found():
    policy = with_segments()
    while policy.is_timed(8):
        policy.succeeded(8, 1 / 8)
    policy.failed(8, OUT_OF_MEMORY)
    assert (policy.size, policy.segments) == (4, CHOICES[1])
    assert (policy.plan.chosen, policy.plan.segments) == (4, 2)
    fits = {(one.size, one.segments): one.fits for one in policy.plan.candidates}
    assert fits == {
        (1, 0): True,
        (2, 0): True,
        (4, 0): False,
        (4, 2): True,
        (8, 0): False,
        (8, 2): False,
    }


def test_a_candidate_that_runs_out_of_memory_gives_way_to_what_keeps_everything():
    policy = with_segments()
    policy.failed(8, OUT_OF_MEMORY)
    assert policy.plan.measuring  # with 4
    policy.failed(4, OUT_OF_MEMORY)
    assert (policy.size, policy.segments) == (2, None)
    assert not policy.plan.measuring


def test_a_batch_of_another_size_does_not_begin_to_run_layers_again():
    policy = searched(8, 2 * MEGABYTE, memory_of, segments="more")
    for _ in range(7):
        policy.succeeded(policy.size, 1 / policy.size)
    assert policy.plan.measuring
    policy.begin(3, nothing, memory_of, lambda: CHOICES)
    assert (policy.size, policy.segments) == (2, None)
    policy.failed(2, OUT_OF_MEMORY)
    policy.failed(2, OUT_OF_MEMORY)
    assert policy.size == 1
