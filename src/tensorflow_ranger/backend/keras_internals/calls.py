"""How Keras runs the layers of a model, one after the other. Read in Keras 3.12 to 3.15."""

import contextlib
import contextvars
import functools

import keras
from keras.src.backend.common import global_state

from tensorflow_ranger.backend.keras_internals.replaced import Replaced
from tensorflow_ranger.backend.scoped import holding

# What a layer's call finds in Keras' global state: the arguments that it inherits, such as
# ``training``, the dtype that variables are cast to, and the names of the layers around it.
_OF_A_CALL = ("current_call_ctx", "autocast_scope", "name_scope_stack")

_caller = contextvars.ContextVar("caller", default=None)


def graph_of(model):
    """Return the `keras.Function` that `model` runs, or None for one that has a ``call`` instead.

    A built `keras.Sequential` keeps its graph as ``_functional``.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    return graph if isinstance(graph, keras.Function) else None


def nodes_of(graph):
    """Return the nodes of a `keras.Function` in the order in which it runs them.

    ``Function._nodes_by_depth`` has them by their distance from the outputs, inputs included. A
    node has an ``operation``, ``arguments``, ``input_tensors`` and ``outputs``.
    """
    by_depth = graph._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if node.operation and not node.is_input]


def made_under_remat_scope(layer):
    """Return whether `layer` was made within a `keras.RematScope`, which it keeps for its calls.

    ``Operation.__init__`` reads the scope into ``_remat_mode``.
    """
    return layer._remat_mode is not None


def call_state():
    """Return what a layer that is called now would find in Keras' global state."""
    return {name: _copied(global_state.get_global_attribute(name)) for name in _OF_A_CALL}


@contextlib.contextmanager
def in_call_state(state):
    """Inside, let layers find in Keras' global state what `call_state` returned.

    Args:
        state: Dict of `call_state`; empty for that outside any call, where variables are not cast.
    """
    before = {name: global_state.get_global_attribute(name) for name in _OF_A_CALL}
    for name in _OF_A_CALL:
        global_state.set_global_attribute(name, _copied(state.get(name)))
    try:
        yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)


def hand_on_losses(layers, ids, losses):
    """Let each of `losses` count as the loss that had the ``id`` in `ids`, for the layer it is of.

    ``Layer.add_loss`` keeps the ``id`` of each loss of a `keras.StatelessScope` in ``_loss_ids``.
    """
    for layer in layers:
        for old, loss in zip(ids, losses, strict=True):
            if old in layer._loss_ids:
                layer._loss_ids.add(id(loss))


@contextlib.contextmanager
def calling_by(caller):
    """Inside, in this thread, let `caller` run the graphs and the layers of models.

    While a scope is open in any thread, ``Function._run_through_graph`` and ``Layer.__call__`` look
    for this thread's caller, and are Keras' own where there is none.

    Args:
        caller: None for Keras' own, or an object with the methods
            ``run_graph(graph, inputs, operation_fn, run)``, where ``run()`` runs the graph as Keras
            does, and ``call_layer(layer, args, kwargs, call)`` with ``call(*args, **kwargs)``.
    """
    with holding(_caller, caller), _asking.scope():
        yield


@functools.cache
def _asking_for_graph(function):
    @functools.wraps(function)
    def run_through_graph(graph, inputs, operation_fn=lambda op: op, call_fn=None):
        caller = _caller.get()
        run = functools.partial(function, graph, inputs, operation_fn, call_fn)
        if caller is None or call_fn is not None:
            return run()
        return caller.run_graph(graph, inputs, operation_fn, run)

    return run_through_graph


@functools.cache
def _asking_for_layer(function):
    @functools.wraps(function)
    def call(layer, *args, **kwargs):
        caller = _caller.get()
        own = functools.partial(function, layer)
        if caller is None:
            return own(*args, **kwargs)
        return caller.call_layer(layer, args, kwargs, own)

    return call


def _copied(value):
    return list(value) if isinstance(value, list) else value


_asking = Replaced(
    lambda: [
        (owner, name, asking(vars(owner)[name]))
        for owner, name, asking in (
            (keras.Function, "_run_through_graph", _asking_for_graph),
            (keras.Layer, "__call__", _asking_for_layer),
        )
    ]
)
