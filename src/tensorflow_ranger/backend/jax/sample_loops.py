"""JAX: a loop over the micro-batches of samples that may have been sorted by length."""

import jax
import jax.numpy as jnp

from tensorflow_ranger.backend.batches import LoopedMicroBatch
from tensorflow_ranger.backend.jax.loops import fold
from tensorflow_ranger.backend.jax.shard_axis import in_step


def fold_samples(body, state, data, slopes, size, samples):
    """Return ``state = body(state, micro_batch)`` after the last `LoopedMicroBatch` of a batch.

    Sorted samples are looped over once for each length that a micro-batch may have, the longest
    first: that takes a body per length, of which no more trips are made than there are
    micro-batches.

    Args:
        body: Function ``(state, micro_batch) -> state``, of pytrees of arrays whose shapes and
            dtypes stay the same.
        state: What the first micro-batch is given.
        data: Tuple ``(x, y, sample_weight)``.
        slopes: ``Slopes.rows`` of the samples, or None.
        size: Samples of a micro-batch. A remainder smaller than that comes last.
        samples: `SortedSamples`, or None to cut the samples as they are given.
    """
    if samples is None:
        batch = data, slopes, None
        return fold(lambda state, each: body(state, LoopedMicroBatch(*each)), state, batch, size)
    rows = samples.order.shape[0]
    keys = jnp.sum(samples.lengths, axis=1)
    end = rows // size * size
    for start, stop, length in ((0, end, size), (end, rows, rows - end)):
        if start == stop:
            continue
        # The first sample of a micro-batch is its longest.
        longest, begin = in_step(keys[start:stop:length]), 0
        for steps in samples.choices:
            until = jnp.sum(longest >= sum(steps))

            def cut_and_run(k, state, start=start, length=length, steps=steps):
                places = jax.lax.dynamic_slice_in_dim(samples.order, start + k * length, length)
                # In their order, as a loss of the batch takes them.
                places = jnp.sort(places)
                rows = None if slopes is None else samples.slopes(slopes, places, steps)
                micro_batch = samples.micro_batch(data, places, steps)
                return body(state, LoopedMicroBatch(micro_batch, rows, places))

            state = jax.lax.fori_loop(begin, until, cut_and_run, state)
            begin = until
    return state
