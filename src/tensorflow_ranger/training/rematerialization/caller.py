"""Runs the chosen parts of a model's forward pass as segments that the backward pass repeats."""

import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.training.rematerialization.segment import (
    Segment,
    end_of,
    needed_by,
    outputs_of,
    run_nodes,
)


class SegmentCaller:
    """Answers what `keras_internals.calling_by` asks.

    Args:
        graphs: Dict from the id of a `keras.Function` to its segments: pairs ``(start, stop)`` of
            places among its nodes.
        layers: Ids of the layers whose every call is a segment.
        head: `HeadLayers` that are left out, so that the model returns what they are given; or
            None.
    """

    def __init__(self, graphs, layers, head=None):
        self._graphs = graphs
        self._layers = layers
        self._head = head

    def call_layer(self, layer, args, kwargs, call):
        """Call a layer, as a segment if it is to be one."""
        if id(layer) not in self._layers:
            return call(*args, **kwargs)
        return Segment.of_call(layer, args, kwargs, call).replayed()

    def run_graph(self, graph, inputs, operation_fn, run):
        """Run a graph, in segments if it is to have any; tensors go as soon as no node needs them.

        Keras holds on to what each node makes until the last one has run.
        """
        nodes = keras_internals.nodes_of(graph)
        values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
        done, end = 0, end_of(graph, nodes, self._head)
        pairs = [pair for pair in self._graphs.get(id(graph), ()) if pair[1] <= end]
        for start, stop in [*pairs, (end, end)]:
            run_nodes(nodes[done:start], values, operation_fn, needed_by(nodes[start:], graph))
            if start < stop:
                later = needed_by(nodes[stop:], graph)
                segment, results = Segment.of_nodes(nodes[start:stop], values, operation_fn, later)
                values.update(zip(results, segment.replayed(), strict=True))
                values = {key: value for key, value in values.items() if key in later}
            done = stop
        return outputs_of(graph, values, nodes[end:])


def freeing(head=None):
    """Return a context in which calls of a model hold on to no tensor longer than needed.

    Args:
        head: `HeadLayers` that the calls leave out, or None.
    """
    return keras_internals.calling_by(SegmentCaller({}, (), head))
