"""The calls of layers in a forward pass, with what went in and what came out."""

import dataclasses
import functools
from typing import Any

import keras
from keras import ops

from tensorflow_ranger.backend import arrays, draws, keras_internals
from tensorflow_ranger.backend.batches import count
from tensorflow_ranger.backend.placed_draws import PlacedDraws
from tensorflow_ranger.training.call_scope import CallScope


def name_of(layer):
    """Return how to name a layer to the user."""
    return f"{type(layer).__name__} {(layer.path or layer.name)!r}"


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer.

    Args:
        layer: The layer.
        inputs: Its arguments' arrays; None for one that a loop or a graph keeps to itself.
        outputs: Its outputs' arrays.
        drew: Whether it drew from PyTorch's own generators, as `torch.nn.Dropout` does.
    """

    layer: Any
    inputs: list
    outputs: list
    drew: bool


def calls_of(model, x, training):
    """Return the calls of a forward pass, those within a layer before the layer's own."""
    calls = []

    def watched(layer):
        call = layer.call

        @functools.wraps(call)
        def watch(*args, **kwargs):
            states, within = arrays.random_state(), len(calls)
            outputs = call(*args, **kwargs)
            drew = states != arrays.random_state() and not any(c.drew for c in calls[within:])
            calls.append(Call(layer, _arrays((args, kwargs)), _arrays(outputs), drew))
            return outputs

        return watch

    layers = keras_internals.layers_of(model)
    own = [vars(layer).get("call") for layer in layers]
    drawer = PlacedDraws(draws.place(0), count(x))
    with arrays.kept(model), CallScope((), draws=drawer):
        # Past Keras' __setattr__, which keeps record of attributes.
        vars_of = [(vars(layer), watched(layer)) for layer in layers]
        for attributes, watch in vars_of:
            attributes["call"] = watch
        try:
            model(x, training=training) if keras_internals.takes_training(model) else model(x)
        finally:
            for (attributes, _), call in zip(vars_of, own, strict=True):
                del attributes["call"]
                if call is not None:
                    attributes["call"] = call
    return calls


def _arrays(tensors):
    return [_array(leaf) for leaf in keras.tree.flatten(tensors) if ops.is_tensor(leaf)]


def _array(tensor):
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":  # NumPy has none
        tensor = ops.cast(tensor, "float32")
    array = arrays.static_value(ops.stop_gradient(tensor))
    return None if array is None or array.dtype.kind not in "fiub" else array.astype("float64")
