"""JAX: the axis of a mesh whose shards are the replicas, while a `shard_map` is traced."""

import contextvars
from typing import NamedTuple

import jax

from tensorflow_ranger.backend.scoped import holding


class _Axis(NamedTuple):
    name: str
    is_divided: bool  # whether each shard is of several devices


_axis = contextvars.ContextVar("axis", default=None)


def current_axis():
    """Return the axis' name, or None outside `over`."""
    axis = _axis.get()
    return None if axis is None else axis.name


def over(axis, is_divided=False):
    """Return a context in which the shards of the mesh's `axis` are the replicas.

    Args:
        axis: The axis' name.
        is_divided: Whether XLA divides each of them among several devices.
    """
    return holding(_axis, _Axis(axis, is_divided))


def in_step(numbers):
    """Return the numbers of which replicas make loops: the greatest of each if devices divide them.

    The devices of a replica meet in the loop's body, and XLA lets those of all replicas meet there
    at once. A replica with fewer trips than the others would leave them waiting.
    """
    axis = _axis.get()
    if axis is None or not axis.is_divided:
        return numbers
    return jax.lax.pmax(numbers, axis.name)
