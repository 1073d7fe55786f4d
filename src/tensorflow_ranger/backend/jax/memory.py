"""JAX: what a compiled function needs, known before it runs."""

import math

import jax
import keras

from tensorflow_ranger.backend.batches import cut, has_sparse


def shapes(data, size):
    """Return the shapes of a micro-batch of `data`."""

    def shape(leaf):
        if leaf is None or has_sparse(leaf):
            return cut(leaf, 0, size)
        return jax.ShapeDtypeStruct((min(size, leaf.shape[0]), *leaf.shape[1:]), leaf.dtype)

    return keras.tree.map_structure(shape, data)


def temporaries_of(lowered):
    """Return the bytes of temporaries that a lowered function needs, 0 where XLA does not tell."""
    analysis = lowered.compile().memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


def bytes_of(shapes):
    """Return the bytes that nested arrays, or their shapes, take."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
