"""Sums over chunks of rows: their values and their gradients, against NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.backend import chunks

ROWS, WIDTH, OUTPUTS = 7, 3, 4


def of_chunk(hidden, weights, rows, state):
    kernel, bias = weights
    logits = ops.matmul(hidden, kernel) + bias
    count, largest = state
    value = ops.sum(ops.square(logits) * rows[0])
    return value, (count + ops.shape(hidden)[0], ops.maximum(largest, ops.max(rows[0])))


def gradients(function, tensors):
    """Return the gradients of a scalar function of tensors."""
    if keras.config.backend() == "jax":
        import jax

        return jax.grad(function)(tensors)
    if keras.config.backend() == "torch":
        tensors = [tensor.requires_grad_() for tensor in tensors]
        function(tensors).backward()
        return [tensor.grad for tensor in tensors]
    import tensorflow as tf

    from tensorflow_ranger.backend.tensorflow.recorder import recorded_by

    with tf.GradientTape() as tape, recorded_by(tape):
        tape.watch(tensors)
        value = function(tensors)
    return tape.gradient(value, tensors)


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_values_and_gradients_are_those_of_all_rows(size):
    rng = np.random.default_rng(0)
    shapes = (ROWS, WIDTH), (WIDTH, OUTPUTS), (OUTPUTS,)
    hidden, kernel, bias = (rng.normal(size=shape).astype("float32") for shape in shapes)
    factors = rng.uniform(size=(ROWS, 1)).astype("float32")
    states = []

    def loss(tensors):
        state = ops.zeros((), "int32"), ops.zeros(())
        rows = (ops.convert_to_tensor(factors), None)
        value, state = chunks.summed_over_chunks(
            of_chunk, tensors[0], tensors[1:], rows, state, size, "float32"
        )
        states.append([value, *state])
        return 3.0 * value

    found = gradients(loss, [ops.convert_to_tensor(each) for each in (hidden, kernel, bias)])
    logits = hidden @ kernel + bias
    slopes = 6.0 * logits * factors
    expected = slopes @ kernel.T, hidden.T @ slopes, slopes.sum(axis=0)
    for actual, each in zip(found, expected, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(actual), each, rtol=1e-5, atol=1e-5)
    if keras.config.backend() != "jax":
        value, count, largest = map(
            ops.convert_to_numpy, (v.detach() if hasattr(v, "detach") else v for v in states[0])
        )
        np.testing.assert_allclose(value, np.sum(logits**2 * factors), rtol=1e-5)
        assert count == ROWS
        np.testing.assert_allclose(largest, factors.max())
