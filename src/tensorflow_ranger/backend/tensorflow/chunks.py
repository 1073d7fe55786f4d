"""TensorFlow: a sum over chunks of rows, with its gradient found chunk by chunk going forward."""

import contextlib
from typing import Any

import tensorflow as tf

from tensorflow_ranger.backend.tensorflow.loops import fold
from tensorflow_ranger.backend.tensorflow.recorder import recorder


def summed_over_chunks(function, hidden, weights, rows, state, size, dtype):
    """Return the sum over chunks of what `function` returns, and the last chunk's state.

    The gradient of a chunk is found as soon as its value is, and all that a chunk makes is gone
    before the next one begins. The backward pass multiplies the sums of the gradients.

    Args:
        function: Function of a chunk of `hidden`, `weights`, a chunk of `rows` and a state that
            returns ``(value, state)``: a scalar to differentiate by the first two, and a state.
        hidden: Floating tensor.
        weights: List of floating tensors.
        rows: Nested tensors, or None, with as many rows as `hidden`.
        state: Nested tensors that a chunk hands to the next one; of them nothing is differentiated.
        size: Rows of a chunk. A remainder smaller than that comes last.
        dtype: Name of the dtype of the sum.
    """
    found = []
    tape: Any = recorder.get()

    @tf.custom_gradient
    def run(hidden, *weights):
        with contextlib.nullcontext() if tape is None else tape.stop_recording():
            total, after, *gradients = _summed(function, hidden, weights, rows, state, size, dtype)
        found.append(after)

        def backward(factor):
            given = zip(gradients, (hidden, *weights), strict=True)
            return [tf.cast(tf.cast(factor, g.dtype) * g, tensor.dtype) for g, tensor in given]

        return total, backward

    return run(hidden, *weights), found[0]


def _summed(function, hidden, weights, rows, state, size, dtype):
    """Return the sum, the state, and the gradients by `hidden` and by each of `weights`."""

    def add(carry, chunk):
        start, total, slopes, sums, state = carry
        own_hidden, own_rows = chunk
        with tf.GradientTape() as tape:
            tape.watch([own_hidden, *weights])
            value, state = function(own_hidden, list(weights), own_rows, state)
        found = tape.gradient(
            value, [own_hidden, *weights], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        slope, *found = map(tf.convert_to_tensor, found)
        places = start + tf.range(tf.shape(own_hidden)[0])  # XLA knows no other range's length
        slopes = tf.tensor_scatter_nd_update(slopes, places[:, None], slope)
        sums = [a + tf.cast(b, a.dtype) for a, b in zip(sums, found, strict=True)]
        start = start + tf.shape(own_hidden)[0]
        return start, total + tf.cast(value, total.dtype), slopes, sums, state

    sums = [tf.zeros(weight.shape, _wide(weight.dtype)) for weight in weights]
    zero = tf.zeros((), dtype)
    begun = tf.constant(0), zero, tf.zeros_like(hidden), sums, state
    _, total, slopes, sums, state = fold(add, begun, (hidden, rows), size)
    return total, state, slopes, *sums


def _wide(dtype):
    return tf.float32 if dtype.size < 4 else dtype
