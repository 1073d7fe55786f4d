"""JAX: a loop whose carry is the sums, as a pure function."""

import jax
import jax.numpy as jnp

from tensorflow_ranger.backend.jax.loops import fold

ASSIGNS_SEEDS = False  # a pure function assigns nothing


def is_traced():
    """Return whether functions run on arrays without values: always, within the loop."""
    return True


def look(function, batch, rows):
    """Call ``function(micro_batch)`` of so many samples, for what it does when it is traced."""

    def call(batch):
        samples = jnp.arange(rows) % leaves(batch)[0].shape[0]
        return function(map_leaves(lambda leaf: jnp.asarray(leaf)[samples], batch))

    jax.eval_shape(call, batch)


def leaves(batch):
    """Return the arrays of the pytree `batch`, without its None leaves."""
    return jax.tree.leaves(batch)


def map_leaves(function, batch):
    """Return `batch` with ``function(leaf)`` in place of each leaf but None."""
    return jax.tree.map(function, batch)


def accumulate(loss_fn, variables, batch, size, has_aux):
    """Return the batch's loss and its gradients, from micro-batches of `size` samples.

    Args:
        loss_fn: Function ``(variables, micro_batch) -> (loss, mass, aux)``. A mass of None means
            that the loss is the mean over the samples; aux are nested scalars that are such means.
        variables: Pytree of arrays.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.
        has_aux: Whether aux holds anything.

    Returns:
        ``(value, mass, aux, gradients)``: a scalar, what it was divided by, aux of the batch, and
        a pytree like `variables`.
    """

    def loss_of(variables, micro_batch):
        loss, mass, aux = loss_fn(variables, micro_batch)
        return loss, (mass, aux)

    def add(sums, micro_batch):
        found, gradients = jax.value_and_grad(loss_of, has_aux=True)(variables, micro_batch)
        loss, (mass, aux) = found
        samples = leaves(micro_batch)[0].shape[0]
        scale, mass = (samples, samples) if mass is None else (1, mass)
        parts = (scale * loss, mass, jax.tree.map(lambda value: mass * value, aux))
        gradients = jax.tree.map(lambda gradient: scale * gradient, gradients)
        return jax.tree.map(
            lambda total, part: total + jnp.asarray(part, total.dtype), sums, (*parts, gradients)
        )

    scalar, gradients = _zeros(variables, batch)
    aux = ()
    if has_aux:
        first = map_leaves(lambda leaf: leaf[:size], batch)
        aux = jax.eval_shape(loss_of, variables, first)[1][1]
    zeros = (scalar, scalar, jax.tree.map(lambda _: scalar, aux), gradients)
    loss, mass, aux, gradients = fold(add, zeros, batch, size)
    divisor = jnp.where(mass == 0, 1, mass)

    def mean(total):
        return jnp.where(mass == 0, 0, total / divisor)

    gradients = jax.tree.map(
        lambda total, variable: mean(total).astype(jnp.result_type(variable)), gradients, variables
    )
    return mean(loss), mass, jax.tree.map(mean, aux), gradients


def accumulate_whole(loss_fn, outputs_fn, variables, batch, size):
    """Return a loss of the whole batch and its gradients, from micro-batches of `size` samples.

    Args:
        loss_fn: Function ``(variables, outputs) -> (loss, aux)`` of the batch's outputs.
        outputs_fn: Function ``(variables, micro_batch) -> outputs``: a pytree of arrays with the
            samples along their leading axes.
        variables: Pytree of arrays.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.

    Returns:
        ``(value, aux, gradients)``: a scalar, what `loss_fn` returned beside it, and a pytree like
        `variables`.
    """
    samples = leaves(batch)[0].shape[0]
    shapes = jax.eval_shape(outputs_fn, variables, map_leaves(lambda leaf: leaf[:size], batch))

    def forward(state, micro_batch):
        start, outputs = state
        parts = outputs_fn(variables, micro_batch)
        outputs = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0),
            outputs,
            parts,
        )
        return start + leaves(micro_batch)[0].shape[0], outputs

    empty = jax.tree.map(lambda leaf: jnp.zeros((samples, *leaf.shape[1:]), leaf.dtype), shapes)
    _, outputs = fold(forward, (jnp.zeros((), "int32"), empty), batch, size)
    rows, structure = jax.tree.flatten(outputs)
    floats = [i for i, row in enumerate(rows) if jnp.issubdtype(row.dtype, jnp.floating)]

    def loss_of(variables, inputs):
        given = dict(zip(floats, inputs, strict=True))
        leaves = [given.get(i, row) for i, row in enumerate(rows)]
        return loss_fn(variables, jax.tree.unflatten(structure, leaves))

    (loss, aux), (own, slopes) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(
        variables, [rows[i] for i in floats]
    )

    def add(sums, part):
        micro_batch, slopes = part

        def inputs_of(variables):
            found = jax.tree.leaves(outputs_fn(variables, micro_batch))
            return [found[i] for i in floats]

        (gradients,) = jax.vjp(inputs_of, variables)[1](slopes)
        return jax.tree.map(lambda a, b: a + jnp.asarray(b, a.dtype), sums, gradients)

    wide = jax.tree.map(lambda g: g.astype(_wide(g.dtype)), own)
    sums = fold(add, wide, (batch, slopes), size)
    gradients = jax.tree.map(lambda s, v: s.astype(jnp.result_type(v)), sums, variables)
    return loss, aux, gradients


def _zeros(variables, batch):
    gradients = jax.tree.map(lambda v: jnp.zeros_like(v, _wide(jnp.result_type(v))), variables)
    totals = jax.tree.leaves(gradients)
    dtype = "float64" if any(total.dtype == "float64" for total in totals) else "float32"
    # In a shard_map a carry differs among devices from the start if it will in the end, and
    # `zeros_like` differs among those that its argument does.
    arrays = [*totals, *jax.tree.leaves(batch)]
    scalar = sum(jnp.zeros_like(array, dtype, shape=()) for array in arrays)
    return scalar, gradients


def _wide(dtype):
    return jnp.dtype("float32") if dtype.itemsize < 4 else dtype


def gradient(function, tensor):
    """Return the gradient of a function of one array, whose value is a scalar."""
    return jax.grad(function)(tensor)
