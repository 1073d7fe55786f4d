"""JAX: functions that the backward pass computes again, so that it need not keep what they made."""

import jax
import jax.numpy as jnp


def replayed(function, inputs, weights):
    """Return ``function(inputs, weights)``; a backward pass computes it again.

    Args:
        function: Function of two lists of tensors that returns a list of tensors.
        inputs: List of tensors.
        weights: List of floating tensors.
    """

    @jax.custom_vjp
    def run(inputs, weights):
        return function(inputs, weights)

    def forward(inputs, weights):
        return function(inputs, weights), (inputs, weights)

    def backward(given, slopes):
        inputs, weights = given
        return jax.vjp(function, _after(slopes, inputs), weights)[1](slopes)

    run.defvjp(forward, backward)
    floating = [x for x in inputs if _is_floating(x)]
    return run([x if _is_floating(x) else _after(floating, [x])[0] for x in inputs], weights)


def _after(first, inputs):
    """Return the inputs, but not before there is the first floating tensor of `first`.

    What depends on seeds alone would be drawn for all functions at once, and a function would run
    again as soon as its inputs are there. XLA drops optimization barriers before it orders
    operations; that nothing is greater than infinity, it does not see.
    """
    floating = [tensor for tensor in first if _is_floating(tensor)]
    if not floating:
        return inputs
    never = floating[0].reshape(-1)[:1].sum() > jnp.inf
    return [
        jnp.where(never, jnp.zeros((), x.dtype), x) for x in jax.lax.optimization_barrier(inputs)
    ]


def _is_floating(tensor):
    return jnp.issubdtype(tensor.dtype, jnp.floating)


def bytes_kept(function, inputs, weights):
    """Return the bytes that a backward pass keeps of what ``function(inputs, weights)`` makes.

    Nothing is computed. What XLA would fuse away is counted.
    """

    def residuals(inputs, weights):
        given = {id(tensor) for tensor in (*inputs, *weights)}
        leaves = jax.tree.leaves(jax.vjp(function, inputs, weights)[1])
        return [leaf for leaf in leaves if id(leaf) not in given]

    found = jax.eval_shape(residuals, inputs, weights)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in found)
