"""TensorFlow: a loop over the micro-batches of a batch, in a graph or eagerly."""

import keras
import tensorflow as tf

from tensorflow_ranger.backend.batches import cut, first


def fold(body, state, batch, size, is_uniform=True):
    """Return ``state = body(state, micro_batch)`` after the last micro-batch of `batch`.

    Args:
        body: Function ``(state, micro_batch) -> state``, of nested tensors whose shapes and dtypes
            stay the same.
        state: What the first micro-batch is given.
        batch: Nested tensors, or None, with the samples along their leading axes.
        size: Samples of a micro-batch. A remainder smaller than that comes last.
        is_uniform: Whether a graph is to know the shape of a micro-batch, as XLA and some layers
            need. `body` is traced twice then if there may be a remainder. Otherwise it is traced
            once, for any number of samples.
    """
    samples = _samples_of(batch)
    if isinstance(samples, int) and samples == size:
        return body(state, batch)
    if not is_uniform:

        def cut_and_run(start, state):
            return start + size, body(state, cut(batch, start, tf.minimum(size, samples - start)))

        return _loop(0, samples, cut_and_run, state)

    # The remainder is a loop as well: it waits for the other micro-batches, to use the memory
    # that they leave.
    end = samples // size * size
    for start, stop, length in ((0, end, size), (end, samples, samples - end)):
        if isinstance(stop, int) and start == stop:
            continue

        def slice_and_run(start, state, length=length):
            return start + length, body(state, _slices(batch, start, length))

        state = _loop(start, stop, slice_and_run, state)
    return state


def _samples_of(batch):
    """Return the number of samples in `batch`, a tensor where a graph does not know it."""
    leaf = first(batch)
    return tf.shape(leaf)[0] if leaf.shape[0] is None else leaf.shape[0]


def _loop(start, stop, body, state):
    _, state = tf.while_loop(
        lambda start, state: start < stop,
        body,
        (tf.convert_to_tensor(start), state),
        parallel_iterations=1,
    )
    return state


def _slices(batch, start, length):
    def slice_of(leaf):
        if leaf is None:
            return None
        rest = tf.shape(leaf)[1:]
        begin = tf.concat([[start], tf.zeros_like(rest)], 0)
        return tf.slice(leaf, begin, tf.concat([[length], rest], 0))

    return keras.tree.map_structure(slice_of, batch)
