"""JAX: a sum over chunks of rows, whose gradient is found chunk by chunk on the way forward."""

import jax
import jax.numpy as jnp

from tensorflow_ranger.backend.jax.loops import fold


def summed_over_chunks(function, hidden, weights, rows, state, size, dtype):
    """Return the sum over chunks of what `function` returns, and the last chunk's state.

    The gradient of a chunk is found as soon as its value is, and all that a chunk makes is gone
    before the next one begins. The backward pass multiplies the sums of the gradients.

    Args:
        function: Function of a chunk of `hidden`, `weights`, a chunk of `rows` and a state that
            returns ``(value, state)``: a scalar to differentiate by the first two, and a state.
        hidden: Floating tensor.
        weights: List of floating tensors.
        rows: Nested tensors, or None, with as many rows as `hidden`.
        state: Nested tensors that a chunk hands to the next one; of them nothing is differentiated.
        size: Rows of a chunk. A remainder smaller than that comes last.
        dtype: Name of the dtype of the sum.
    """

    @jax.custom_vjp
    def run(hidden, weights, rows, state):
        return forward(hidden, weights, rows, state)[0]

    def forward(hidden, weights, rows, state):
        def add(carry, chunk):
            start, total, slopes, sums, state = carry
            own_hidden, own_rows = chunk

            def of_chunk(hidden, weights):
                return function(hidden, weights, own_rows, state)

            gradients = jax.value_and_grad(of_chunk, argnums=(0, 1), has_aux=True)
            (value, state), (slope, found) = gradients(own_hidden, weights)
            slopes = jax.lax.dynamic_update_slice_in_dim(slopes, slope, start, 0)
            sums = [a + b.astype(a.dtype) for a, b in zip(sums, found, strict=True)]
            total = total + value.astype(total.dtype)
            return start + own_hidden.shape[0], total, slopes, sums, state

        sums = [jnp.zeros(weight.shape, _wide(weight.dtype)) for weight in weights]
        zero = jnp.zeros((), dtype)
        begun = jnp.zeros((), "int32"), zero, jnp.zeros_like(hidden), sums, state
        _, total, slopes, sums, state = fold(add, begun, (hidden, rows), size)
        return (total, state), (slopes, sums)

    def backward(found, given):
        slopes, sums = found
        factor, _ = given
        by_weights = [
            (factor * total).astype(weight.dtype)
            for total, weight in zip(sums, weights, strict=True)
        ]
        return (factor * slopes).astype(hidden.dtype), by_weights, None, None

    run.defvjp(forward, backward)
    return run(hidden, weights, rows, state)


def _wide(dtype):
    return jnp.promote_types(dtype, "float32")
