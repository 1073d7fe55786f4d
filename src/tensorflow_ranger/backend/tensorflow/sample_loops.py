"""TensorFlow: a loop over the micro-batches of samples that may have been sorted by length."""

import tensorflow as tf

from tensorflow_ranger.backend.batches import LoopedMicroBatch
from tensorflow_ranger.backend.tensorflow.loops import fold


def fold_samples(body, state, data, slopes, size, samples, is_uniform=True):
    """Return ``state = body(state, micro_batch)`` after the last `LoopedMicroBatch` of a batch.

    Args:
        body: Function ``(state, micro_batch) -> state``, of nested tensors whose shapes and dtypes
            stay the same.
        state: What the first micro-batch is given.
        data: Tuple ``(x, y, sample_weight)``.
        slopes: ``Slopes.rows`` of the samples, or None.
        size: Samples of a micro-batch. A remainder smaller than that comes last.
        samples: `TrimmedSamples`, or None to cut the samples as they are given.
        is_uniform: As in `fold`.
    """
    if samples is None:
        return fold(
            lambda state, each: body(state, LoopedMicroBatch(*each)),
            state,
            (data, slopes, None),
            size,
            is_uniform,
        )

    def run(state, places, steps):
        rows = None if slopes is None else samples.slopes(slopes, places, steps)
        micro_batch = samples.micro_batch(data, places, steps)
        return body(state, LoopedMicroBatch(micro_batch, rows, places))

    if samples.table is not None:
        return _fold_table(run, state, samples.table)

    def cut_and_run(state, each):
        places, lengths = each
        # In their order, as a loss of the batch takes them.
        return run(state, tf.sort(places), tf.unstack(tf.reduce_max(lengths, axis=0)))

    return fold(cut_and_run, state, (samples.order, samples.lengths), size, is_uniform)


def _fold_table(run, state, table):
    """Return the state after the last micro-batch of a division: see `divided_samples.table_of`."""

    def cut_and_run(start, state):
        _, *steps, stop = tf.unstack(table[start])
        return stop, run(state, table[start:stop, 0], steps)

    _, state = tf.while_loop(
        lambda start, state: start < tf.shape(table)[0],
        cut_and_run,
        (tf.constant(0), state),
        parallel_iterations=1,
    )
    return state
