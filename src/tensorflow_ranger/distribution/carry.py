"""What the replicas make of a batch together: totals, and the small state that passes hand on."""

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


def merged(totals, carry, metrics, before):
    """Return the totals and the carry of the whole batch.

    Losses and totals are sums of the replicas' shares. Layers' state is the mean weighted by
    samples; its spread is that within the replicas and that between them. A metric gains what it
    gained on any replica, which is exact for metrics that add up, as Keras' do.

    Args:
        totals: List of tensors.
        carry: Dict of this replica's carry after its last micro-batch. Its "present" is
            empty, or holds one tensor with a 1 for each total that has a gradient in it.
        metrics: List of tensors; the values of ``carry["metrics"]`` when the batch began.
        before: `StateBefore`.

    Returns:
        Tuple ``(totals, carry)``.
    """
    samples = carry["samples"]
    state = carry["state"]
    gains = _differences(state.values, before.values)
    moved = [gains[i] * _like(samples, gains[i]) for i in before.averaged]
    squares = [gains[i] ** 2 * _like(samples, gains[i]) for i in before.normalized]
    gained = [] if replicas.SUMS_METRICS else _differences(carry["metrics"], metrics)
    groups = [
        totals,
        [samples, carry["loss"], *carry["parts"]],
        moved,
        [gains[i] for i in before.summed],
        squares,
        state.spreads,
        gained,
        carry["noise"],
        carry["present"],
    ]
    totals, (whole, loss, *parts), moved, summed, squares, spreads, gained, noise, present = (
        _sum_groups(groups)
    )
    final = list(state.values)
    for i, move in zip(before.averaged, moved, strict=True):
        final[i] = before.values[i] + move / _like(whole, move)
    for i, gain in zip(before.summed, summed, strict=True):
        final[i] = before.values[i] + gain
    between = [
        square - (final[i] - before.values[i]) ** 2 * _like(whole, square)
        for i, square in zip(before.normalized, squares, strict=True)
    ]
    if not replicas.SUMS_METRICS:
        values = [m + ops.cast(g, m.dtype) for m, g in zip(metrics, gained, strict=True)]
        carry = carry | {"metrics": values, "counted": whole}
    else:
        carry = carry | {"counted": samples}
    return totals, carry | {
        "state": state._replace(
            values=final,
            spreads=[inside + more for inside, more in zip(spreads, between, strict=True)],
        ),
        "samples": whole,
        "loss": loss,
        "parts": parts,
        "noise": noise,
        "present": present,
    }


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
