"""What the replicas make of a batch together: sums of gradients, and the state of the loop."""

from typing import Any, NamedTuple

from keras import ops

from tensorflow_ranger.backend import replicas

_FAR = 0x3243F6A9  # odd, so that its multiples are all the integers, in no order


class StateBefore(NamedTuple):
    """The layers' state that a batch began with, and how replicas make one of what they found."""

    values: list[Any]  #: Tensors that gains are counted from.
    averaged: list[int]  #: Places of the means over samples.
    summed: list[int]  #: Places of the sums over samples.
    normalized: list[int]  #: Places of the means whose spreads are held.


def merged(sums, present, state, metrics, before):
    """Return the sums and the state of the whole batch.

    Losses and gradients are added up over the replicas. Layers' state is the mean weighted by
    samples; its spread is the total variance: that within the replicas plus that between them. A
    metric gains what it gained on any replica, which is exact for metrics that add up: Keras' do.

    Args:
        sums: List of tensors; the gradients' sums on this replica.
        present: Empty list, or one tensor with a 1 for each sum that has a gradient in it.
        state: `LoopState` of this replica after its last micro-batch.
        metrics: List of tensors; the values of ``state.metrics`` when the batch began.
        before: `StateBefore`.

    Returns:
        Tuple ``(sums, present, state, counted)``: of all replicas, and the samples that metrics
        count on this one.
    """
    samples = state.samples
    layers = state.layers
    gains = _differences(layers.values, before.values)
    moved = [gains[i] * _like(samples, gains[i]) for i in before.averaged]
    squares = [gains[i] ** 2 * _like(samples, gains[i]) for i in before.normalized]
    gained = [] if replicas.SUMS_METRICS else _differences(state.metrics, metrics)
    groups = [
        sums,
        [samples, state.loss, *state.losses],
        moved,
        [gains[i] for i in before.summed],
        squares,
        layers.spreads,
        gained,
        state.noise,
        present,
    ]
    sums, (whole, loss, *losses), moved, summed, squares, spreads, gained, noise, present = (
        _sum_groups(groups)
    )
    final = list(layers.values)
    for i, move in zip(before.averaged, moved, strict=True):
        final[i] = before.values[i] + move / _like(whole, move)
    for i, gain in zip(before.summed, summed, strict=True):
        final[i] = before.values[i] + gain
    between = [
        square - (final[i] - before.values[i]) ** 2 * _like(whole, square)
        for i, square in zip(before.normalized, squares, strict=True)
    ]
    values, counted = state.metrics, samples
    if not replicas.SUMS_METRICS:
        values = [m + ops.cast(g, m.dtype) for m, g in zip(metrics, gained, strict=True)]
        counted = whole
    state = state._replace(
        metrics=values,
        layers=layers._replace(
            values=final,
            spreads=[inside + more for inside, more in zip(spreads, between, strict=True)],
        ),
        samples=whole,
        loss=loss,
        losses=losses,
        noise=noise,
    )
    return sums, present, state, counted


def own_seed(seed):
    """Return the seed of this replica's draws in a batch, from the seed that all replicas share."""
    if replicas.count() == 1:
        return seed
    number = ops.cast(replicas.index() + 1, seed.dtype)
    stride = ops.cast(replicas.count() + 1, seed.dtype)
    offset = (number + seed[1] * stride) * ops.cast(_FAR, seed.dtype)
    return ops.stack([seed[0] + offset, ops.zeros_like(seed[1])])


def next_seed(before, after):
    """Return the seed of the next batch, the same on all replicas however much each has drawn."""
    if replicas.count() == 1:
        return after
    return ops.stack([before[0], before[1] + ops.ones_like(before[1])])


def _differences(values, others):
    return [
        value if str(value.dtype).endswith("bool") else value - other
        for value, other in zip(values, others, strict=True)
    ]


def _like(value, other):
    return ops.cast(value, other.dtype)


def _sum_groups(groups):
    summed = iter(replicas.sum_over([tensor for group in groups for tensor in group]))
    return [[next(summed) for _ in group] for group in groups]
