"""JAX: a loop over the micro-batches of a batch inside a compiled function."""

import functools

import jax
import jax.numpy as jnp
import keras

from tensorflow_ranger.backend.steps.samples import count, cut, has_sparse


def shapes(data, size):
    """Return the shapes of a micro-batch of `data`."""

    def shape(leaf):
        if leaf is None or has_sparse(leaf):
            return cut(leaf, 0, size)
        return jax.ShapeDtypeStruct((min(size, leaf.shape[0]), *leaf.shape[1:]), leaf.dtype)

    return keras.tree.map_structure(shape, data)


def adding(measure, part):
    """Return a function that adds the masses of a micro-batch, or `part` of them, to sums."""

    def add(sums, micro_batch):
        return [
            total + (mass if part is None else mass * part)
            for total, mass in zip(sums, measure(micro_batch), strict=True)
        ]

    return add


def scan(body, carry, data, size):
    """Return ``carry = body(carry, micro_batch)`` after the last micro-batch of `data`."""
    full, rest = divmod(count(data), size)

    def step(carry, start):
        part = jax.tree.map(
            functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size),
            data,
        )
        return body(carry, part), None

    if full:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(full) * size)
    return body(carry, cut(data, full * size, rest)) if rest else carry


def temporaries_of(lowered):
    """Return the bytes of temporaries that a lowered function needs, 0 where XLA does not tell."""
    analysis = lowered.compile().memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes
