"""Runs the rules as they are run in training: compiled where the backend compiles."""

import functools

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.multitask.combinations import COMBINATIONS


@functools.cache
def _compiled(rule):
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.jit(rule)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(rule, jit_compile=True)
    return rule


def _gram(gradients, dtype):
    return ops.convert_to_tensor((gradients @ gradients.T).astype(dtype), dtype=dtype)


def eager_weights(rule, gradients, dtype="float64"):
    """Return the weights that the function `rule` gives, not compiled, as a NumPy array."""
    return ops.convert_to_numpy(rule(_gram(gradients, dtype)))


def weights(rule, gradients, dtype="float64"):
    """Return the weights of a rule, by its name or as a function, as a NumPy array."""
    rule = COMBINATIONS[rule] if isinstance(rule, str) else rule
    result = _compiled(rule)(_gram(gradients, dtype))
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    assert tuple(result.shape) == (len(gradients),)
    return ops.convert_to_numpy(result)


def combined(rule, gradients, dtype="float64"):
    """Return the one gradient that a rule makes of the rows of `gradients`."""
    return weights(rule, gradients, dtype).astype(np.float64) @ gradients
