"""How Keras' layers look up the rows of a table. Read in Keras 3.12 to 3.15."""

import contextlib
import contextvars
import functools

import keras
from keras.src import backend as keras_backend

from tensorflow_ranger.backend.keras_internals.replaced import Replaced
from tensorflow_ranger.backend.scoped import holding

_lookup = contextvars.ContextVar("lookup", default=None)


@contextlib.contextmanager
def looking_up_by(lookup):
    """Inside, in this thread, let `lookup` answer what layers look up in tables.

    ``keras.ops.take``, by which `keras.layers.Embedding` looks up rows of its variable, calls
    ``backend.numpy.take`` by the module's attribute.

    Args:
        lookup: Function ``(function, table, indices)`` of Keras' own function of the other two, a
            `keras.Variable` and a tensor of integers; returns the rows.
    """
    with holding(_lookup, lookup), _asking.scope():
        yield


@functools.cache
def _asking_of(function):
    @functools.wraps(function)
    def take(x, indices, axis=None):
        lookup = _lookup.get()
        if lookup is None or axis != 0 or not isinstance(x, keras.Variable):
            return function(x, indices, axis)
        return lookup(lambda table, indices: function(table, indices, 0), x, indices)

    return take


_asking = Replaced(lambda: [(keras_backend.numpy, "take", _asking_of(keras_backend.numpy.take))])
