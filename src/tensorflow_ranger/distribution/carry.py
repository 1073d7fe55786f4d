"""What the replicas make of a batch together: totals, and the small state that passes hand on."""

from keras import ops

from tensorflow_ranger.backend import replicas

_FAR = 0x3243F6A9  # odd, so that its multiples are all the integers, in no order


def merged(totals, carry, metrics, averages, normalizations):
    """Return the totals and the carry of the whole batch.

    Losses and totals are sums of the replicas' shares. Layers' state is the mean weighted by
    samples; its spread is that within the replicas and that between them. A metric gains what it
    gained on any replica, which is exact for metrics that add up, as Keras' do.

    Args:
        totals: List of tensors.
        carry: Dict of this replica's carry after its last micro-batch. Its "present" is
            empty, or holds one tensor with a 1 for each total that has a gradient in it.
        metrics: List of tensors; the values of ``carry["metrics"]`` when the batch began.
        averages: List of tensors; the values of ``carry["averages"]`` when the batch began.
        normalizations: Places in the averages of the means whose spreads the carry holds.

    Returns:
        Tuple ``(totals, carry)``.
    """
    samples = carry["samples"]
    means = [i for i, value in enumerate(averages) if "float" in str(value.dtype)]
    moved = [(carry["averages"][i] - averages[i]) * _like(samples, averages[i]) for i in means]
    squares = [
        (carry["averages"][i] - averages[i]) ** 2 * _like(samples, averages[i])
        for i in normalizations
    ]
    gained = [] if replicas.SUMS_METRICS else _differences(carry["metrics"], metrics)
    groups = [
        totals,
        [samples, carry["loss"], *carry["parts"]],
        moved,
        squares,
        carry["spreads"],
        gained,
        carry["noise"],
        carry["present"],
    ]
    totals, (whole, loss, *parts), moved, squares, spreads, gained, noise, present = _sum_groups(
        groups
    )
    final = list(carry["averages"])
    for i, move in zip(means, moved, strict=True):
        final[i] = averages[i] + move / _like(whole, move)
    between = [
        square - (final[i] - averages[i]) ** 2 * _like(whole, square)
        for i, square in zip(normalizations, squares, strict=True)
    ]
    if not replicas.SUMS_METRICS:
        values = [m + ops.cast(g, m.dtype) for m, g in zip(metrics, gained, strict=True)]
        carry = carry | {"metrics": values, "counted": whole}
    else:
        carry = carry | {"counted": samples}
    return totals, carry | {
        "averages": final,
        "spreads": [inside + more for inside, more in zip(spreads, between, strict=True)],
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
    return [value - other for value, other in zip(values, others, strict=True)]


def _like(value, other):
    return ops.cast(value, other.dtype)


def _sum_groups(groups):
    summed = iter(replicas.sum_over([tensor for group in groups for tensor in group]))
    return [[next(summed) for _ in group] for group in groups]
