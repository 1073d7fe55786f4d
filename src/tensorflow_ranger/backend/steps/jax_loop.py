"""JAX: a loop over the micro-batches of a batch inside a compiled function."""

import jax
import keras

from tensorflow_ranger.backend.steps.samples import cut, has_sparse


def shapes(data, size):
    """Return the shapes of a micro-batch of `data`."""

    def shape(leaf):
        if leaf is None or has_sparse(leaf):
            return cut(leaf, 0, size)
        return jax.ShapeDtypeStruct((min(size, leaf.shape[0]), *leaf.shape[1:]), leaf.dtype)

    return keras.tree.map_structure(shape, data)


def fold(body, state, batch, size):
    """Return ``state = body(state, micro_batch)`` after the last micro-batch of `batch`.

    Args:
        body: Function ``(state, micro_batch) -> state``, of pytrees of arrays whose shapes and
            dtypes stay the same.
        state: What the first micro-batch is given.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Samples of a micro-batch. A remainder smaller than that comes last.
    """
    samples = jax.tree.leaves(batch)[0].shape[0]
    if samples == 0:
        return state  # a replica's part of what remains of a batch
    size = min(size, samples)
    full, rest = divmod(samples, size)

    def at(start, length, state):
        micro_batch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, length), batch
        )
        return body(state, micro_batch)

    state = jax.lax.fori_loop(0, full, lambda k, state: at(k * size, size, state), state)
    if rest:
        # XLA unrolls a loop that it sees to have one trip, and then gives the remainder memory
        # beside that of the other micro-batches. The barrier hides where the loop begins.
        start, state = jax.lax.optimization_barrier((full * size, state))
        _, state = jax.lax.while_loop(
            lambda place: place[0] < samples,
            lambda place: (place[0] + rest, at(place[0], rest, place[1])),
            (start, state),
        )
    return state


def temporaries_of(lowered):
    """Return the bytes of temporaries that a lowered function needs, 0 where XLA does not tell."""
    analysis = lowered.compile().memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes
