"""The layers that make a model's logits, and the graph that they end."""

from typing import Any, NamedTuple

import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.training.rematerialization.segment import run_nodes, with_inner

_OF_EACH_ROW = (keras.layers.Activation, keras.layers.Softmax)
_REVERSIBLE = getattr(keras.layers, "ReversibleEmbedding", None)  # not in Keras 3.12


class HeadLayers(NamedTuple):
    """The last nodes of a graph: a `Dense` layer or a reversed embedding, and activations."""

    graph: Any  #: The `keras.Function` that they are in.
    start: int  #: The place of the first among its nodes.
    width: int  #: Features of each of the rows that they are given.
    outputs: int  #: Numbers that they make of each row.
    rank: int  #: Of the outputs.
    dtype: str  #: Of the outputs.

    @property
    def nodes(self):
        """The nodes."""
        return keras_internals.nodes_of(self.graph)[self.start :]

    @property
    def layers(self):
        """The layers that the nodes call."""
        return [node.operation for node in self.nodes]

    @property
    def weights(self):
        """The trained variables that the layers compute with."""
        found = [v for layer in self.layers for v in layer.trainable_variables]
        if getattr(self.layers[0], "tie_weights", True):
            return found
        return [v for v in found if v is not self.layers[0].embeddings]  # for looking up alone

    def __call__(self, hidden):
        """Return what the layers make of rows."""
        key = id(self.nodes[0].input_tensors[0])
        values, (output,) = {key: hidden}, self.graph.outputs
        run_nodes(self.nodes, values, lambda operation: operation, {id(output)})
        return keras.tree.pack_sequence_as(self.graph.output, [values[id(output)]])

    def mask_of(self, hidden):
        """Return the mask that the outputs of `hidden` have, or None."""
        mask = keras_internals.get_mask(hidden)
        for layer in self.layers:
            mask = layer.compute_mask(hidden, mask)
        return mask


def head_layers_of(model):
    """Return the `HeadLayers` of a built model, or None and why it has none that can be divided.

    Returns:
        Tuple ``(head, reason)``, of which one is None.
    """
    graph = keras_internals.graph_of(model)
    if graph is None or not type(model).call.__module__.startswith("keras."):
        return None, f"{type(model).__name__} is no functional or Sequential model"
    if len(graph.outputs) != 1:
        return None, f"the model has {len(graph.outputs)} outputs"
    nodes = keras_internals.nodes_of(graph)
    start = len(nodes) - 1
    while start and _is_of_each_row(nodes[start].operation):
        start -= 1
    node, before = nodes[start], [each.operation for each in nodes[:start]]
    layer = node.operation
    if isinstance(layer, keras.Model) and start == len(nodes) - 1:
        if any(each is layer for operation in before for each in with_inner(operation)):
            return None, f"the model {layer.name!r} is called more than once"
        return head_layers_of(layer)
    if not _is_projection(node):
        return None, (
            f"its last layer {layer.name!r} is neither Dense nor a reversed ReversibleEmbedding"
        )
    reason = _why_whole([layer, *(each.operation for each in nodes[start + 1 :])])
    if reason is not None:
        return None, reason
    (output,) = graph.outputs
    width, outputs = node.input_tensors[0].shape[-1], output.shape[-1]
    dtype = keras.backend.standardize_dtype(output.dtype)
    return HeadLayers(graph, start, width, outputs, len(output.shape), dtype), None


def _is_projection(node):
    layer = node.operation
    if type(layer) is keras.layers.Dense:
        return True
    return type(layer) is _REVERSIBLE and bool(node.arguments.kwargs.get("reverse"))


def _is_of_each_row(operation):
    is_last_axis = getattr(operation, "axis", -1) == -1  # of Softmax
    return type(operation) in _OF_EACH_ROW and is_last_axis


def _why_whole(layers):
    for layer in layers:
        if layer.activity_regularizer is not None:
            return f"the layer {layer.name!r} has an activity_regularizer, which takes all logits"
        if getattr(layer, "lora_enabled", False):
            return f"the layer {layer.name!r} has LoRA enabled"
        if layer.quantization_mode is not None:
            return f"the layer {layer.name!r} is quantized"
    return None
