"""JAX: the shards of a `shard_map`; elsewhere XLA sums by itself, and there is one replica."""

import contextlib
import os

import jax
import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.jax.arrays import run_if as run_if
from tensorflow_ranger.backend.jax.shard_axis import current_axis

SUMS_METRICS = False  # a shard's metrics know nothing of other shards


def count():
    """Return the number of replicas whose gradients are to be summed here."""
    axis = current_axis()
    return 1 if axis is None else jax.lax.axis_size(axis)


def has_several(variables):
    """Return whether several replicas train `variables`."""
    distribution = keras.distribution.distribution()
    return distribution is not None and distribution.num_model_replicas > 1


def meet_in_step(variables):
    """Return whether several replicas train `variables` within one compiled step."""
    return has_several(variables)


def in_lockstep(variables):
    """Return whether several processes must run the same program, with the same shapes."""
    return has_several(variables) and jax.process_count() > 1


def copies(variables):
    """Return how many copies of `variables` there are: one array, wherever its parts are."""
    return 1


def index():
    """Return the number of this replica."""
    return jax.lax.axis_index(current_axis())


def loss_divisor():
    """Return what Keras divides a mean loss by because of the replicas."""
    return 1


def mismatch(variables):
    """Return what would make each process train a copy of its own, or None."""
    asked = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
    processes = jax.process_count()
    if asked > 1 and processes == 1:
        return (
            f"KERAS_DISTRIBUTION_NUM_PROCESSES is {asked}, but this process is alone. Call "
            "keras.distribution.initialize() before anything else, or unset the variable."
        )
    distribution = keras.distribution.distribution()
    if processes > 1 and distribution is None:
        return (
            f"{processes} processes run, but Keras has no distribution: each would train a model "
            "of its own. Call keras.distribution.set_distribution(keras.distribution."
            "DataParallel()) before the model is built."
        )
    layouts = keras_internals.layout_map(distribution)
    if layouts is not None and not any(
        layouts[variable.path] is not None for variable in variables
    ):
        return (
            f"The LayoutMap matches no variable: got the patterns {', '.join(layouts)}, and "
            f"variables such as {', '.join(variable.path for variable in variables[:3])}. "
            "A pattern must match the whole path: begin it with '.*'."
        )
    return None


def sum_over(tensors):
    """Return the tensors summed over the replicas."""
    return list(jax.lax.psum(tuple(tensors), current_axis()))


def gather(tensors, copies=1):
    """Return the rows of all replicas, in the order of the replicas.

    Args:
        tensors: List of tensors whose leading axes are the rows of this replica.
        copies: How many replicas, one after the other, have the same rows.

    Returns:
        Tuple ``(tensors, start, total)``: this replica's first row among `total`.
    """
    axis = current_axis()
    gathered = [
        array[::copies].reshape(-1, *array.shape[2:])
        for array in jax.lax.all_gather(tuple(tensors), axis)
    ]
    rows = tensors[0].shape[0]
    return gathered, jax.lax.axis_index(axis) // copies * rows, gathered[0].shape[0]


def skip_reduction(optimizer):
    """Return a context in which `optimizer` takes gradients as sums: on JAX it always does."""
    return contextlib.nullcontext()


def begin_alike(variables):
    """Assign the first replica's values to the variables of all: they are one array."""


def are_alike(variables):
    """Return whether all replicas hold the same values: they are one array."""
    return True


def total(variable):
    """Return the value of `variable` as a NumPy array."""
    return keras.ops.convert_to_numpy(variable.value)
