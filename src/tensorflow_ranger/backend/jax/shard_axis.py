"""JAX: the axis of a mesh whose shards are the replicas, while a `shard_map` is traced."""

import contextlib
import contextvars

_axis = contextvars.ContextVar("axis", default=None)


def current_axis():
    """Return the axis' name, or None outside `over`."""
    return _axis.get()


@contextlib.contextmanager
def over(axis):
    """Return a context in which the shards of the mesh's `axis` are the replicas."""
    token = _axis.set(axis)
    try:
        yield
    finally:
        _axis.reset(token)
