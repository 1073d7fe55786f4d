"""JAX: a loop whose carry is the sums, as a pure function."""

import jax
import jax.numpy as jnp

from tensorflow_ranger.backend.jax.loops import fold


def leaves(batch):
    """Return the arrays of the pytree `batch`, without its None leaves."""
    return jax.tree.leaves(batch)


def map_leaves(function, batch):
    """Return `batch` with ``function(leaf)`` in place of each leaf but None."""
    return jax.tree.map(function, batch)


def accumulate(loss_fn, variables, batch, size):
    """Return the batch's loss and its gradients, from micro-batches of `size` samples.

    Args:
        loss_fn: Function ``(variables, micro_batch) -> (loss, mass)``. A mass of None means that
            the loss is the mean over the samples.
        variables: Pytree of arrays.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.

    Returns:
        ``(value, gradients)``: a scalar, and a pytree like `variables`.
    """
    value_and_gradients = jax.value_and_grad(loss_fn, has_aux=True)

    def add(sums, micro_batch):
        (loss, mass), gradients = value_and_gradients(variables, micro_batch)
        samples = leaves(micro_batch)[0].shape[0]
        scale, mass = (samples, 1) if mass is None else (1, mass)
        return jax.tree.map(
            lambda total, part: total + scale * jnp.asarray(part, total.dtype),
            sums,
            (loss, mass, gradients),
        )

    loss, mass, gradients = fold(add, _zeros(variables, batch), batch, size)
    divisor = jnp.where(mass == 0, 1, mass)

    def mean(total):
        return jnp.where(mass == 0, 0, total / divisor)

    return mean(loss), jax.tree.map(
        lambda total, variable: mean(total).astype(jnp.result_type(variable)), gradients, variables
    )


def _zeros(variables, batch):
    gradients = jax.tree.map(lambda v: jnp.zeros_like(v, _wide(jnp.result_type(v))), variables)
    totals = jax.tree.leaves(gradients)
    dtype = "float64" if any(total.dtype == "float64" for total in totals) else "float32"
    # In a shard_map a carry differs among devices from the start if it will in the end, and
    # `zeros_like` differs among those that its argument does.
    arrays = [*totals, *jax.tree.leaves(batch)]
    scalar = sum(jnp.zeros_like(array, dtype, shape=()) for array in arrays)
    return scalar, scalar, gradients


def _wide(dtype):
    return jnp.dtype("float32") if dtype.itemsize < 4 else dtype


def gradient(function, tensor):
    """Return the gradient of a function of one array, whose value is a scalar."""
    return jax.grad(function)(tensor)
