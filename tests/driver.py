"""Drives an optimizer the way its backend's users do: one compiled micro-batch at a time."""

import keras
import numpy as np


class Driver:
    """An optimizer on weights of its own, called through a compiled `apply`.

    TensorFlow calls it in a `tf.function`, JAX in a jitted `stateless_apply`, PyTorch directly.

    Args:
        optimizer: `keras.optimizers.Optimizer`, not built yet.
        weights: List of arrays; the initial weights.
        dtype: Name of the weights' dtype.
        masses: Whether `apply` is given masses.
    """

    def __init__(self, optimizer, weights, dtype="float32", masses=False):
        self.optimizer = optimizer
        self.variables = [
            keras.Variable(weight, dtype=dtype, name=f"weight_{i}")
            for i, weight in enumerate(weights)
        ]
        optimizer.build(self.variables)
        self.dtype = dtype
        self.traces = 0
        self._masses = masses
        self._initial = [keras.ops.convert_to_numpy(v.value) for v in self._state]
        self._call = getattr(self, f"_{keras.config.backend()}")()

    @property
    def _state(self):
        return [*self.variables, *self.optimizer.variables]

    @property
    def weights(self):
        """The weights as float64 arrays."""
        return [np.asarray(keras.ops.convert_to_numpy(v.value), "float64") for v in self.variables]

    def restart(self):
        """Give every variable its initial value, without compiling again."""
        for variable, value in zip(self._state, self._initial, strict=True):
            variable.assign(value)

    def apply(self, gradients, mass=None):
        """Apply the gradients (arrays) of one micro-batch."""
        gradients = [keras.ops.convert_to_tensor(g, dtype=self.dtype) for g in gradients]
        if self._masses:
            dtype = "float64" if self.dtype == "float64" else "float32"
            self._call(gradients, keras.ops.convert_to_tensor(mass, dtype=dtype))
        else:
            self._call(gradients)

    def _traced(self, gradients, *mass):
        self.traces += 1
        self.optimizer.apply(gradients, self.variables, **_keyword(mass))

    def _torch(self):
        return self._traced

    def _tensorflow(self):
        import tensorflow as tf

        return tf.function(self._traced)

    def _jax(self):
        import jax

        def step(weights, state, gradients, *mass):
            self.traces += 1
            return self.optimizer.stateless_apply(state, gradients, weights, **_keyword(mass))

        step = jax.jit(step, donate_argnums=(0, 1))

        def call(gradients, *mass):
            weights, state = step(
                [v.value for v in self.variables],
                [v.value for v in self.optimizer.variables],
                gradients,
                *mass,
            )
            for variable, value in zip(self._state, [*weights, *state], strict=True):
                variable.assign(value)

        return call


def _keyword(mass):
    return {"mass": mass[0]} if mass else {}
