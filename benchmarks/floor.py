"""The least work that trains on a batch in micro-batches, hand-written for each backend.

`make_floor(model, optimizer, jit_compile)` returns a function of a list of micro-batches: forward
and backward for each, one addition a parameter, one update.
"""

import keras

_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")


def _tensorflow(model, optimizer, jit_compile):
    import tensorflow as tf

    optimizer.build(model.trainable_variables)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=jit_compile)
    def add(sums, x, y, samples):
        with tf.GradientTape() as tape:
            loss = _LOSS(y, model(x, training=True)) / samples
        gradients = tape.gradient(loss, variables)
        return [total + gradient for total, gradient in zip(sums, gradients, strict=True)]

    @tf.function(jit_compile=jit_compile)
    def update(sums):
        optimizer.apply(sums, model.trainable_variables)

    def step(micro_batches):
        samples = tf.constant(float(sum(len(x) for x, _ in micro_batches)))
        sums = [tf.zeros_like(variable) for variable in variables]
        for x, y in micro_batches:
            sums = add(sums, x, y, samples)
        update(sums)

    return step


def _jax(model, optimizer, jit_compile):
    import jax
    import jax.numpy as jnp

    optimizer.build(model.trainable_variables)
    frozen = [variable.value for variable in model.non_trainable_variables]

    def loss_of(weights, x, y, samples):
        return _LOSS(y, model.stateless_call(weights, frozen, x, training=True)[0]) / samples

    def add(sums, weights, x, y, samples):
        gradients = jax.grad(loss_of)(weights, x, y, samples)
        return [total + gradient for total, gradient in zip(sums, gradients, strict=True)]

    def update(weights, state, sums):
        return optimizer.stateless_apply(state, sums, weights)

    add = jax.jit(add, donate_argnums=0)
    update = jax.jit(update, donate_argnums=(0, 1))
    zeros = jax.jit(lambda weights: [jnp.zeros_like(weight) for weight in weights])
    held = [
        [variable.value.copy() for variable in group]
        for group in (model.trainable_variables, optimizer.variables)
    ]

    def step(micro_batches):
        weights, state = held
        samples = float(sum(len(x) for x, _ in micro_batches))
        sums = zeros(weights)
        for x, y in micro_batches:
            sums = add(sums, weights, x, y, samples)
        held[:] = update(weights, state, sums)
        jax.block_until_ready(held)

    return step


def _torch(model, optimizer, jit_compile):
    import torch

    optimizer.build(model.trainable_variables)
    variables = model.trainable_variables

    def step(micro_batches):
        samples = sum(len(x) for x, _ in micro_batches)
        model.zero_grad()
        for x, y in micro_batches:
            (_LOSS(y, model(x, training=True)) / samples).backward()
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in variables], variables)

    return step


def make_floor(model, optimizer, jit_compile):
    """Return the step of the active backend."""
    floors = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
    return floors[keras.config.backend()](model, optimizer, jit_compile)
