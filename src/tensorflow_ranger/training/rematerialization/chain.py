"""The layers of a model in the order of their calls, and what the backward pass keeps of each."""

import math
from typing import NamedTuple

import keras

from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.training.rematerialization.segment import (
    Segment,
    end_of,
    needed_by,
    outputs_of,
    run_nodes,
    with_inner,
)


class Link(NamedTuple):
    """A call of a layer or another operation, of a graph or of a subclassed model."""

    key: int  #: The id of the graph that it is in, or of the layer.
    place: int | None  #: Its place among the nodes of the graph; None for a layer of no graph.
    may_replay: bool  #: Whether it may be run again.
    kept: int  #: Bytes that the backward pass keeps of what it makes.
    handed_on: int  #: Bytes that the nodes after it are given by it and by those before it.


class ChainMeasurer:
    """Answers what `keras_internals.calling_by` asks, and lists the `links` of a forward pass.

    Args:
        model: A built Keras model.
        head: `HeadLayers` that are left out, so that the model returns what they are given; or
            None.
    """

    def __init__(self, model, head=None):
        self.links = []
        self._head = head
        self._graphs = set()
        self._layers = set(_layers_without_graph(model))

    def call_layer(self, layer, args, kwargs, call):
        """Call a layer; list it if it is an outermost one of a model that has no graph."""
        if id(layer) not in self._layers:
            return call(*args, **kwargs)
        segment = Segment.of_call(layer, args, kwargs, call)
        kept = segment.bytes_kept()
        outputs = call(*args, **kwargs)
        handed_on = sum(map(_bytes_of, keras.tree.flatten(outputs)))
        self.links.append(Link(id(layer), None, _may_replay(layer), kept, handed_on))
        return outputs

    def run_graph(self, graph, inputs, operation_fn, run):
        """Run a graph node by node, and list each; graphs within it list their own."""
        if id(graph) in self._graphs:  # called again: it is divided alike
            return run()
        self._graphs.add(id(graph))
        nodes = keras_internals.nodes_of(graph)
        values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
        end = end_of(graph, nodes, self._head)
        for place, node in enumerate(nodes[:end]):
            kept, later = 0, needed_by(nodes[place + 1 :], graph)
            is_model = isinstance(node.operation, keras.Model)  # it lists its own
            if not is_model:
                segment, _ = Segment.of_nodes([node], values, operation_fn, later)
                kept = segment.bytes_kept()
            run_nodes([node], values, operation_fn, later)
            if not is_model:
                handed_on = sum(map(_bytes_of, values.values()))
                may_replay = _may_replay(node.operation)
                self.links.append(Link(id(graph), place, may_replay, kept, handed_on))
        return outputs_of(graph, values, nodes[end:])


def _layers_without_graph(model):
    """Return the ids of the outermost layers of the models that have no graph."""
    graph = keras_internals.graph_of(model)
    layers = [node.operation for node in keras_internals.nodes_of(graph)] if graph else model.layers
    for layer in layers:
        if isinstance(layer, keras.Model):
            yield from _layers_without_graph(layer)
        elif graph is None:
            yield id(layer)


def _may_replay(operation):
    """Return whether `operation` computes the same again, and has no table to look up rows in.

    What PyTorch's modules keep for themselves would move twice. Of a table TensorFlow gets the
    rows that were looked up, and Keras checks the samples of a stateful layer's state while it
    runs.
    """
    layers = with_inner(operation)
    is_stateful = any(getattr(layer, "stateful", False) for layer in layers)
    is_table = any(isinstance(layer, keras.layers.Embedding) for layer in layers)
    return not (is_stateful or is_table or any(arrays.foreign_state(each) for each in layers[:1]))


def _bytes_of(tensor):
    if tensor is None:
        return 0
    return math.prod(s or 1 for s in tensor.shape) * bytes_per_number(tensor.dtype)


def bytes_per_number(dtype):
    """Return the bytes that a number of `dtype` takes."""
    return _SIZES.get(keras.backend.standardize_dtype(dtype), 4)


_SIZES = {"bool": 1, "uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "int64": 8, "float64": 8}
