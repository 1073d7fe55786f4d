"""Losses, batches and calls that the tests of `accumulate_gradients` share."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.training.accumulate_gradients import accumulate_gradients

BACKEND = keras.config.backend()
MODES = {
    "tensorflow": ["eager", "function", "unknown_batch", "xla"],
    "jax": ["eager", "jit"],
    "torch": ["eager"],
}[BACKEND]
SAMPLES = 10
SIZES = [1, 3, 5, 7, 10, 64]

only_jax = pytest.mark.skipif(BACKEND != "jax", reason="about JAX")
only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow")
only_torch = pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")
not_jax = pytest.mark.skipif(BACKEND == "jax", reason="JAX gives zeros, not None")


def variable(value, dtype) -> Any:
    """Return `value` as what the backend's users differentiate with respect to."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.Variable(value, dtype=dtype)
    if BACKEND == "torch":
        import torch

        return torch.tensor(value, dtype=getattr(torch, dtype), requires_grad=True)
    return ops.convert_to_tensor(value, dtype=dtype)


def compiled(function, mode):
    """Return `function` of a pytree of tensors, compiled as `mode` says."""
    if mode == "eager":
        return function
    if mode == "jit":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    if mode == "unknown_batch":

        def call(batch):
            arrays = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]

            @tf.function(
                input_signature=[tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in arrays]
            )
            def flat(*arrays):
                rest = iter(arrays)
                return function(
                    keras.tree.map_structure(lambda x: None if x is None else next(rest), batch)
                )

            return flat(*arrays)

        return call
    return tf.function(function, jit_compile=mode == "xla")


def accumulated(loss_fn, variables, batch, size, mode="eager"):
    """Call `accumulate_gradients` with ``loss_fn(variables, micro_batch)`` on every backend."""

    def call(batch):
        function = loss_fn if BACKEND == "jax" else lambda rows: loss_fn(variables, rows)
        return accumulate_gradients(function, variables, batch, size)

    batch = keras.tree.map_structure(
        lambda x: None if x is None else ops.convert_to_tensor(x), batch
    )
    return compiled(call, mode)(batch)


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def assert_close(actual, expected, tolerance):
    for tensor, value in zip(actual, expected, strict=True):
        assert tuple(tensor.shape) == np.shape(value)
        np.testing.assert_allclose(array(tensor), value, rtol=tolerance, atol=tolerance)


def regression(dtype):
    """Return the weights and the samples, with a mask in which micro-batches differ."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(dtype) for shape in ((4, 3), (3, 1))]
    x, y = rng.normal(size=(SAMPLES, 4)).astype(dtype), rng.normal(size=(SAMPLES, 1)).astype(dtype)
    mask = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 1], dtype)[:, None]
    return weights, (x, y, mask)


def mean(x):
    """Return the mean; `ops.mean` rounds through float32 on some backends."""
    return ops.sum(x) / ops.cast(ops.size(x), x.dtype)


def squared_errors(weights, x, y):
    kernel, readout = weights
    return ((x @ kernel) ** 2 @ readout - y) ** 2


def mean_loss(weights, micro_batch):
    x, y, _ = micro_batch
    return mean(squared_errors(weights, x, y))


def masked_loss(weights, micro_batch):
    x, y, mask = micro_batch
    return ops.sum(mask * squared_errors(weights, x, y)), ops.sum(mask)


def reference(weights, batch, mask):
    """Return the whole batch's weighted mean loss and its gradients, by the chain rule."""
    (kernel, readout), (x, y, _) = weights, batch
    hidden = x @ kernel
    errors = hidden**2 @ readout - y
    slopes = 2 * mask * errors / mask.sum()
    gradients = [x.T @ (slopes @ readout.T * 2 * hidden), (hidden**2).T @ slopes]
    return (mask * errors**2).sum() / mask.sum(), gradients
