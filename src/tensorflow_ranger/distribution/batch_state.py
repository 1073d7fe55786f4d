"""What the replicas make of a batch together: sums of gradients, and the state of the loop."""

from typing import Any, NamedTuple

from keras import ops

from tensorflow_ranger.backend import replicas


class StateBefore(NamedTuple):
    """The layers' state that a batch began with, and how replicas make one of what they found."""

    values: list[Any]  #: Tensors that gains are counted from.
    averaged: list[int]  #: Places of the means over samples.
    summed: list[int]  #: Places of the sums over samples.
    normalized: list[int]  #: Places of the means whose spreads are held.


def merged(sums, present, state, metrics, seeds, before):
    """Return the sums and the state of the whole batch.

    Losses and gradients are added up over the replicas. Layers' state is the mean weighted by
    samples; its spread is the total variance: that within the replicas plus that between them. A
    metric gains what it gained on any replica, which is exact for metrics that add up: Keras' do.
    Seeds advance as they did on the replicas that had samples, which is alike.

    Args:
        sums: List of tensors; the gradients' sums on this replica.
        present: Empty list, or one tensor with a 1 for each sum that has a gradient in it.
        state: `LoopState` of this replica after its last micro-batch.
        metrics: List of tensors; the values of ``state.metrics`` when the batch began.
        seeds: List of tensors of shape ``(2,)``; the values of ``state.seeds`` then.
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
        _advances(state, seeds),
        moved,
        [gains[i] for i in before.summed],
        squares,
        layers.spreads,
        gained,
        state.noise,
        state.norms,
        present,
    ]
    (sums, totals, advances, moved, summed, squares, spreads, gained, noise, norms, present) = (
        _sum_groups(groups)
    )
    whole, loss, *losses = totals
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
        seeds=_advanced(seeds, advances),
        metrics=values,
        layers=layers._replace(
            values=final,
            spreads=[inside + more for inside, more in zip(spreads, between, strict=True)],
        ),
        samples=whole,
        loss=loss,
        losses=losses,
        noise=noise,
        norms=norms,
    )
    return sums, present, state, counted


def _advances(state, seeds):
    """Return by how many each seed has advanced, and whether there were samples at all."""
    has_rows = ops.sign(state.samples)
    steps = [after[1] - seed[1] for after, seed in zip(state.seeds, seeds, strict=True)]
    return [has_rows * _like(step, has_rows) for step in steps] + [has_rows] * bool(seeds)


def _advanced(seeds, advances):
    *steps, ran = advances or [1.0]
    return [
        ops.stack([seed[0], seed[1] + _like(ops.round(step / ran), seed)])
        for seed, step in zip(seeds, steps, strict=True)
    ]


def first_places(counts, copies):
    """Return where in the batch the rows of each part of this replica begin.

    The batch is the rows of one replica after those of another. Replicas that share the rows of a
    part are of one process: the batch is then the rows of one process after those of another, and
    of a process first those that each of its replicas has for itself.

    Args:
        counts: List of tensors of shape ``(replicas,)``; of each part the rows on each replica.
        copies: List of integers; how many replicas, one after the other, have the same rows.
    """
    numbers = ops.arange(replicas.count(), dtype="int32")
    index, process = replicas.index(), max(copies)
    first = index // process * process
    is_here = (numbers >= first) & (numbers < first + process)
    counts = [
        ops.where(numbers % alike == 0, rows, ops.zeros_like(rows))
        for rows, alike in zip(counts, copies, strict=True)
    ]
    start = sum(_sum_where(numbers < first, rows) for rows in counts)
    places = []
    for rows, alike in zip(counts, copies, strict=True):
        places.append(start + _sum_where(is_here & (numbers < index // alike * alike), rows))
        start = start + _sum_where(is_here, rows)
    return places


def _sum_where(is_counted, values):
    return ops.sum(ops.where(is_counted, values, ops.zeros_like(values)))


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
