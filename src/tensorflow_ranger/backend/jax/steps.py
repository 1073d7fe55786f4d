"""JAX: what is known of its steps before one is made, and which one is made."""

import jax
import jax.numpy as jnp
import numpy as np

from tensorflow_ranger.backend import replicas
from tensorflow_ranger.backend.jax.one_device_step import JaxStep
from tensorflow_ranger.backend.jax.sharded_step import Mesh, ReplicaStep
from tensorflow_ranger.backend.jax.sharded_step import trainer_overrides as trainer_overrides

KNOWS_MEMORY = True  # before a step has run
ADDS_IN_PLACE = False  # a failed batch has changed nothing


def default_loop(compiled):
    """Return "device" or "host": where the loop over micro-batches runs best."""
    # XLA's CPU runs a convolution inside a loop on one thread.
    return "device" if compiled and jax.default_backend() != "cpu" else "host"


def rows(leaf):
    """Return the number of samples that `leaf` of a batch gives to a replica at most."""
    if not len(leaf.shape):
        return -1
    return Mesh().rows(leaf) if replicas.has_several(()) else leaf.shape[0]


def first_part(data):
    """Return the batch: but for the number of samples, a replica's part has its shapes."""
    return data


def batches_here(data):
    """Return a list of the parts of a batch that the replicas of this process are given."""
    return Mesh().batches_here(data) if replicas.has_several(()) else [data]


def state_of_one(model, metrics):
    """Return copies of the state, without the optimizer's, for a step of one replica to donate."""
    groups = (model.trainable_variables, model.non_trainable_variables, (), metrics)
    return tuple([_copy_here(variable) for variable in group] for group in groups)


def _copy_here(variable):
    value = variable.value
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return jnp.copy(value)
    if not value.is_fully_replicated:
        raise ValueError(
            "A process can look at a model of which it holds all weights: got "
            f"{variable.path}, which a LayoutMap spreads over several processes. Let it spread "
            "weights over the devices of each process, or call microbatch without padding=."
        )
    return jnp.asarray(np.asarray(value))


def without_optionals(data):
    """Return `data` of an iterator with None for what is not there: it is so already."""
    return data


def make_step(phases, loop, compiled):
    """Return the step of one device, or that of the replicas of Keras' distribution."""
    if replicas.has_several(phases.weights) and not phases.is_alone:
        return ReplicaStep(phases)
    return JaxStep(phases, loop, compiled)
