"""JAX: a loop over the micro-batches of a batch inside a compiled function."""

import jax


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
    if samples <= size:
        return body(state, batch)
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
