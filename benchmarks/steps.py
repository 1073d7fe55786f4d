"""One compiled training step per backend, as its users write it.

`make_step(model, optimizer, jit_compile)` returns a function ``step(x, y)`` that trains on one
micro-batch and waits for the result. With ``optimizer=None`` the step is the floor: forward,
backward, and one addition a parameter. `step.temporaries(x, y)` is XLA's own count of the bytes it
needs beside arguments and results, or None where the backend does not tell.
"""

import keras


def _loss(model, x, y):
    loss = keras.ops.sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True)
    return keras.ops.mean(loss)


class TensorFlowStep:
    """A `tf.function` with a `GradientTape`."""

    def __init__(self, model, optimizer, jit_compile):
        import tensorflow as tf

        variables = [variable.value for variable in model.trainable_variables]
        sums = [tf.Variable(tf.zeros_like(variable)) for variable in variables]
        if optimizer is not None:
            optimizer.build(model.trainable_variables)

        @tf.function(jit_compile=jit_compile)
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = _loss(model, x, y)
            gradients = tape.gradient(loss, variables)
            if optimizer is None:
                for total, gradient in zip(sums, gradients, strict=True):
                    total.assign_add(gradient)
            else:
                optimizer.apply(gradients, model.trainable_variables)
            return loss

        self._step = step

    def __call__(self, x, y):
        self._step(x, y).numpy()

    def temporaries(self, x, y):
        return None


class JaxStep:
    """A jitted function of the state, whose buffers are donated."""

    def __init__(self, model, optimizer, jit_compile):
        import jax

        frozen = [variable.value for variable in model.non_trainable_variables]
        weights = [variable.value for variable in model.trainable_variables]
        self._block = jax.block_until_ready

        def loss_of(weights, x, y):
            return _loss(lambda x, **kw: model.stateless_call(weights, frozen, x, **kw)[0], x, y)

        def step(weights, state, x, y):
            loss, gradients = jax.value_and_grad(loss_of)(weights, x, y)
            if optimizer is None:
                return weights, [s + g for s, g in zip(state, gradients, strict=True)], loss
            return *optimizer.stateless_apply(state, gradients, weights), loss

        if optimizer is None:
            state = [0 * weight for weight in weights]
        else:
            optimizer.build(model.trainable_variables)
            state = [variable.value for variable in optimizer.variables]
        self._state = jax.tree.map(lambda a: a.copy(), (weights, state))
        self._step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self, x, y):
        *self._state, loss = self._step(*self._state, x, y)
        self._block(loss)
        self._block(self._state)

    def temporaries(self, x, y):
        analysis = self._step.lower(*self._state, x, y).compile().memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes


class TorchStep:
    """A loop's body: forward, backward, apply."""

    def __init__(self, model, optimizer, jit_compile):
        import torch

        variables = model.trainable_variables
        sums = [torch.zeros_like(variable.value) for variable in variables]
        if optimizer is not None:
            optimizer.build(variables)

        def step(x, y):
            loss = _loss(model, x, y)
            model.zero_grad()
            loss.backward()
            gradients = [variable.value.grad for variable in variables]
            with torch.no_grad():
                if optimizer is None:
                    torch._foreach_add_(sums, gradients)
                else:
                    optimizer.apply(gradients, variables)

        self._step = step

    def __call__(self, x, y):
        self._step(x, y)

    def temporaries(self, x, y):
        return None


def make_step(model, optimizer, jit_compile):
    """Return the step of the active backend."""
    steps = {"tensorflow": TensorFlowStep, "jax": JaxStep, "torch": TorchStep}
    return steps[keras.config.backend()](model, optimizer, jit_compile)
