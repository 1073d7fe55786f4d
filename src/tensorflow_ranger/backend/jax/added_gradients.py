"""JAX: the gradients of a micro-batch, added to the sums of its batch."""

import jax
import jax.numpy as jnp

from tensorflow_ranger.backend.jax import row_lists
from tensorflow_ranger.backend.jax.arrays import squared_norm
from tensorflow_ranger.backend.phases import Added

KEEPS_MASKS = False  # what a gradient's function returns beside its loss has lost them


def current_values(variables):
    """Return pairs of the variables and the values an inner scope must be told."""
    return [(variable, variable.value) for variable in variables]


def add_gradients(share, phases, sums, factor, inputs=None, weights=None):
    """Add the gradients of ``share(weights)`` to the sums.

    Args:
        share: Function of the trainable variables' values that returns ``(loss, aux)``; with
            several losses, loss is a list of them. With `inputs` it takes those, too.
        phases: `Phases`.
        sums: The accumulator's sums: one per weight, for each loss. None is for the list of rows of
            the weight, a table that is read by look-ups alone.
        factor: Scalar that gradients are multiplied by, or None.
        inputs: List of tensors by which `share` is differentiated as well, or None.
        weights: None: what the variables hold is a value already.

    Returns:
        `Added`.
    """
    values = [weight.value for weight in phases.weights]
    count = len(values)
    tables = [] if inputs is not None else [i for i, total in enumerate(sums) if total is None]
    if tables:
        share, inputs = row_lists.cut(share, phases.weights, tables, values)
    if inputs is None:
        function, values = share, values
    else:
        function, values = lambda both: share(both[:count], both[count:]), [*values, *inputs]
    if phases.losses == 1:
        found, aux = (
            jax.grad(function, has_aux=True)(values) if values else ([], function(values)[1])
        )
        found = [found]
    else:
        found, aux = _gradients_apart(function, values)
    gradients = [gradient for each in found for gradient in each[:count]]
    square = squared_norm(gradients) if phases.measures_gradients else None
    sums = [
        None if total is None else phases.accumulator.add(i, total, gradient, factor)
        for i, (total, gradient) in enumerate(zip(sums, gradients, strict=True))
    ]
    slopes = [each[count:] for each in found]
    if tables:
        (slopes,), (aux, indices) = slopes, aux
        for i, each, rows in zip(tables, indices, slopes, strict=True):
            gradient = row_lists.list_of(phases.weights[i], each, rows)
            sums[i] = phases.accumulator.first(i, gradient, factor)
    return Added(sums, aux, square, [True] * len(sums), slopes)


def _gradients_apart(share, values):
    # One forward pass for all. The transpose of one output leaves out what others need, where a
    # pull-back of all of them would multiply it by zeros.
    losses, push_forward, aux = jax.linearize(share, values, has_aux=True)
    gradients = []
    for place, loss in enumerate(losses):
        pull_back = jax.linear_transpose(lambda t, place=place: push_forward(t)[place], values)
        gradients.append(pull_back(jnp.ones_like(loss))[0])
    return gradients, aux


def filled(sums, empty, like):
    """Return the sums, and an empty list: a trace knows which of them have gradients."""
    return sums, []
