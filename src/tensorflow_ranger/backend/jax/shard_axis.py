"""JAX: the axis of a mesh whose shards are the replicas, while a `shard_map` is traced."""

import contextvars

from tensorflow_ranger.backend.scoped import holding

_axis = contextvars.ContextVar("axis", default=None)


def current_axis():
    """Return the axis' name, or None outside `over`."""
    return _axis.get()


def over(axis):
    """Return a context in which the shards of the mesh's `axis` are the replicas."""
    return holding(_axis, axis)
