"""Runs the rules as they are run in training: compiled where the backend compiles."""

import functools

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.multitask.combinations import COMBINATIONS


@functools.cache
def compiled(rule, xla=False):
    """Return the function compiled, with TensorFlow for XLA if asked; on torch itself."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.jit(rule)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(rule, jit_compile=xla)
    return rule


def gram_matrix(gradients, dtype="float64"):
    """Return the inner products of the rows, a tensor."""
    return ops.convert_to_tensor((gradients @ gradients.T).astype(dtype), dtype=dtype)


def weights(rule, gradients, dtype="float64"):
    """Return the weights of a rule, by its name or as a function, as a NumPy array."""
    rule = COMBINATIONS[rule] if isinstance(rule, str) else rule
    result = compiled(rule)(gram_matrix(gradients, dtype))
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    assert tuple(result.shape) == (len(gradients),)
    return ops.convert_to_numpy(result)


def combined(rule, gradients, dtype="float64"):
    """Return the one gradient that a rule makes of the rows of `gradients`."""
    return weights(rule, gradients, dtype).astype(np.float64) @ gradients
