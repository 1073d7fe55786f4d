"""JAX: pure functions of the variables' values, conditions as loops of no or one trip."""

import contextlib

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.core import Tracer
from jax.experimental.sparse import JAXSparse

from tensorflow_ranger.backend import row_updates
from tensorflow_ranger.backend.jax import row_lists
from tensorflow_ranger.backend.one_by_one import blend as blend
from tensorflow_ranger.backend.one_by_one import blend_squares as blend_squares
from tensorflow_ranger.backend.one_by_one import descend as descend

KEEPS_ALL_ASSIGNMENTS = False  # of a step Keras keeps those of non-trainable variables alone


def version():
    """Return the framework's version string."""
    return jax.__version__


def devices():
    """Return the names of the devices JAX computes on."""
    return [str(device) for device in jax.devices()]


def supports_dtype(dtype):
    """Return whether arrays of the dtype named `dtype` can be made."""
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def has_value(variable):
    """Return whether `variable` holds a value, not one that a failed step has taken."""
    try:
        value = variable.value
        return isinstance(value, Tracer) or np.asarray(value) is not None
    except (TypeError, RuntimeError):  # taken by fit; deleted by donation
        return False


def static_value(tensor):
    """Return `tensor` as a NumPy array, or None while it is only known to a trace."""
    return None if isinstance(tensor, Tracer) else np.asarray(tensor)


def all_finite(tensors):
    """Return a scalar bool: no tensor holds an infinity or a NaN."""
    # A sum keeps every infinity or NaN as one of the two, and reads faster than a test of each
    # element. It may also overflow: then the elements decide.
    total = sum(jnp.sum(t, dtype=jnp.promote_types(t.dtype, "float32")) for t in tensors)
    return jax.lax.cond(jnp.isfinite(total), lambda: True, lambda: _each_finite(tensors))


def _each_finite(tensors):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(tensor)) for tensor in tensors]))


def squared_norm(tensors):
    """Return the squared Euclidean norm of all `tensors` together, a float32 scalar."""
    return sum((jnp.sum(jnp.square(jnp.asarray(t, "float32"))) for t in tensors), jnp.zeros(()))


def add_scaled(sums, tensors, scale, keep):
    """Add ``scale * tensors`` to the variables `sums` where the scalar `keep` holds."""
    for total, tensor in zip(sums, tensors, strict=True):
        scaled = jnp.asarray(tensor, total.dtype) * jnp.asarray(scale, total.dtype)
        total.assign(jnp.where(keep, total.value + scaled, total.value))


def blend_where(slots, tensors, share, where):
    """Assign ``slot + share (tensor - slot)`` to `slots` where the scalar bool `where` holds."""
    # A loop of no or one trip would be one pass more: XLA makes this choice while it blends.
    for slot, tensor in zip(slots, tensors, strict=True):
        blended = slot.value + share * (jnp.asarray(tensor, slot.dtype) - slot.value)
        slot.assign(jnp.where(where, blended, slot.value))


def computed(tensors):
    """Return `tensors` as arrays that exist: XLA computes them once, not for each of their uses.

    It would compute a unit's factor anew for each of the unit's elements, roots included.
    """
    return jax.lax.optimization_barrier(tensors)


def softplus(tensor):
    """Return ``log(1 + exp(tensor))`` of a `tensor` >= 0."""
    # At least log 2, so that what 1 + exp(-x) rounds away is less than an ulp, without log1p.
    return tensor + jnp.log(1.0 + jnp.exp(-tensor))


def divide(sums, divisor, dtypes):
    """Return ``sums / divisor`` as tensors of the given dtypes."""
    return [
        (total.value / jnp.asarray(divisor, total.dtype)).astype(dtype)
        for total, dtype in zip(sums, dtypes, strict=True)
    ]


def zero(sums, where):
    """Assign zeros to the variables `sums` where the scalar `where` holds."""
    # Plain zeros would be one array, copied to each sum. A choice is made in the sum's own place.
    for total in sums:
        total.assign(jnp.where(where, 0, total.value))


def run_if(predicate, function, variables):
    """Call `function`, which assigns `variables`, where the scalar bool `predicate` holds.

    A `lax.cond` copies every variable it returns, and computing both branches to select one costs
    a full update. XLA aliases the carry of a loop in place, so a loop of no trip costs nothing.
    """
    known = static_value(predicate)
    if known is not None:
        if known:
            function()
        return

    def body(carry):
        with keras.StatelessScope(zip(variables, carry[1], strict=True)) as scope:
            function()
        return jnp.zeros_like(carry[0]), [scope.get_current_value(v) for v in variables]

    carry = (jnp.asarray(predicate), [v.value for v in variables])
    _, values = jax.lax.while_loop(lambda carry: carry[0], body, carry)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def is_sparse(leaf):
    """Return whether `leaf` of a batch is a sparse array, a BCOO."""
    return isinstance(leaf, JAXSparse)


def rows(leaf, start, size):
    """Return the rows of `leaf` from `start` on, `size` at most."""
    return leaf[start : start + size]


def samples_at(leaf, places):
    """Return the rows of `leaf` at these places, a NumPy array of integers."""
    return leaf[places]


def filled(leaf, steps):
    """Return `leaf` with zeros behind its second axis, which has `steps` entries then."""
    missing = [(0, steps - leaf.shape[1])]
    return jnp.pad(leaf, [(0, 0), *missing, *[(0, 0)] * (leaf.ndim - 2)])


def rows_at(leaf, start, count):
    """Return `count` rows of `leaf` from the scalar `start` on."""
    return jax.lax.dynamic_slice_in_dim(leaf, start, count)


def gradients_of(function, tensors, number):
    """Return the gradients of each of `number` scalars that ``function(tensors)`` returns."""
    return [
        jax.grad(lambda values, place=place: function(values)[place])(tensors)
        for place in range(number)
    ]


def copied(value):
    """Return `value` as a tensor that later assignments leave alone: JAX's arrays never change."""
    return value


def foreign_state(model):
    """Return the state of `model` that Keras does not hold: on JAX there is none."""
    return []


def known_means(foreign):
    """Return those of the foreign state that are known to be means over samples."""
    return []


def foreign_normalizations(foreign):
    """Return ``(mean, variance, momentum)`` of the foreign state's normalizations."""
    return []


def initial_value(variable):
    """Return the value of `variable` as a NumPy array."""
    return keras.ops.convert_to_numpy(variable.value)


def kept(model):
    """Return a context that leaves as it was what Keras' variables don't hold: there is nothing."""
    return contextlib.nullcontext()


def random_state():
    """Return no bytes: layers draw from Keras' seeds alone."""
    return b""


def apply(optimizer, gradients, variables):
    """Call `optimizer.apply` as Keras' own train step does, and assign what it returns.

    A gradient may be a list of rows where the update leaves the others as they are.
    """
    # `LossScaleOptimizer.apply` assigns within a `lax.cond`, which JAX's traces don't allow.
    slots, rows_alone = optimizer.variables, contextlib.nullcontext()
    if any(row_lists.is_list(gradient) for gradient in gradients):
        rows_alone = row_updates.rows_alone(optimizer, row_lists)
    with rows_alone:
        values, state = optimizer.stateless_apply(
            [slot.value for slot in slots], gradients, [variable.value for variable in variables]
        )
    for variable, value in zip([*variables, *slots], [*values, *state], strict=True):
        variable.assign(value)


def plus(total, gradient, factor):
    """Return ``total + factor * gradient``, where a `factor` of None is 1."""
    gradient = jnp.asarray(gradient, total.dtype)
    return total + (gradient if factor is None else gradient * jnp.asarray(factor, total.dtype))


def times(variable, factor):
    """Return ``factor * variable`` as a tensor."""
    return variable.value * jnp.asarray(factor, variable.dtype)


def reset_peak_memory():
    """Begin a new peak for `peak_memory`: JAX knows before it runs, and needs none."""


def peak_memory():
    """Return None: JAX knows before it runs."""


def wait(tensor):
    """Return when `tensor` has been computed."""
    jax.block_until_ready(tensor)
