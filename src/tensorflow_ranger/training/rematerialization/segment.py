"""A part of a model's forward pass as a function that can be run again: the same every time."""

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals, replay
from tensorflow_ranger.training.call_scope import CallScope


class Segment:
    """Some layers' calls, in the scope of a micro-batch's forward pass.

    They become a function of their inputs, of the values of the weights, and of those of other
    variables, such as seeds. Each run begins with the arguments of calls that are there when the
    segment is made, and assigns nothing.

    Args:
        run: Function of a list of tensors, masks included, that returns nested tensors.
        inputs: List of tensors.
        layers: Layers, and other operations, that `run` calls.
    """

    def __init__(self, run, inputs, layers):
        self._run = run
        self._inputs = inputs
        self._masks = [keras_internals.get_mask(tensor) for tensor in inputs]
        self._layers = [each for layer in layers for each in _with_inner(layer)]
        self._scope = CallScope.current()
        self._begun = self._scope.begun_again({})
        self._state = keras_internals.call_state()
        with keras_internals.in_call_state({}):
            own = {id(v): v for layer in self._layers for v in layer.variables}
            self._variables = list(own.values())
            values = [_tensor(variable.value) for variable in self._variables]
        self._values = dict(zip(own, values, strict=True))
        self._weights = [id(v) for v in self._variables if v.trainable and _is_floating(v)]
        self._others = [key for key in own if key not in self._weights]
        self._structure, self._counts = None, ()
        self._assigned, self._losses, self._draws = [], [], None

    @classmethod
    def of_call(cls, layer, args, kwargs, call):
        """Return the segment that is a layer's call."""
        leaves = keras.tree.flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if ops.is_tensor(leaf)]

        def run(tensors):
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            filled_args, filled_kwargs = keras.tree.pack_sequence_as((args, kwargs), filled)
            return call(*filled_args, **filled_kwargs)

        return cls(run, [leaves[place] for place in places], [layer])

    @classmethod
    def of_nodes(cls, nodes, graph, values, operation_fn):
        """Return the segment of some nodes of a graph, and the ids of the tensors it returns.

        Args:
            nodes: List of nodes that follow each other.
            graph: The `keras.Function` that they are of.
            values: Dict from ids of symbolic tensors to tensors, or None for an optional input.
            operation_fn: As in `run_nodes`.
        """
        made = {id(output): None for node in nodes for output in node.outputs}
        needed = {id(x): None for node in nodes for x in node.input_tensors if id(x) not in made}
        keys = [key for key in needed if values[key] is not None]
        inside = {id(node) for node in nodes}
        others = [node for node in keras_internals.nodes_of(graph) if id(node) not in inside]
        wanted = {id(x) for node in others for x in node.input_tensors}
        wanted |= {id(x) for x in graph.outputs}
        results = [key for key in made if key in wanted]

        def run(tensors):
            inner = {**needed, **dict(zip(keys, tensors, strict=True))}
            run_nodes(nodes, inner, operation_fn)
            return [inner[key] for key in results]

        operations = [node.operation for node in nodes]
        return cls(run, [values[key] for key in keys], operations), results

    @property
    def arguments(self):
        """What the segment is a function of: inputs and values of state, and weights."""
        inputs = [*self._inputs, *(self._values[key] for key in self._others)]
        return inputs, [self._values[key] for key in self._weights]

    def replayed(self):
        """Return what the layers return; a backward pass runs them again."""
        found = replay.replayed(self.function, *self.arguments)
        outputs, masks, values, losses = self._split(found)
        for variable, value in zip(self._assigned, values, strict=True):
            self._scope.add_update((variable, value))
        for loss in losses:
            self._scope.add_loss(loss)
        keras_internals.hand_on_losses(self._layers, self._losses, losses)
        if self._scope.draws is not None:
            self._scope.draws.go_on_from(self._draws)
        for place, mask in zip(self._masked, masks, strict=True):
            keras_internals.set_mask(outputs[place], mask)
        return keras.tree.pack_sequence_as(self._structure, outputs)

    def bytes_kept(self):
        """Return the bytes that the backward pass keeps if it does not run the layers again."""
        return replay.bytes_kept(self.function, *self.arguments)

    def function(self, inputs, weights):
        """Return the outputs, their masks, the values assigned and the losses added, as a list."""
        inputs, state = inputs[: len(self._inputs)], inputs[len(self._inputs) :]
        for tensor, mask in zip(inputs, self._masks, strict=True):
            if mask is not None and keras_internals.get_mask(tensor) is None:
                keras_internals.set_mask(tensor, mask)
        values = dict(zip([*self._weights, *self._others], [*weights, *state], strict=True))
        calls = keras_internals.in_call_state(self._state)
        with calls, keras_internals.calling_by(None), self._begun.begun_again(values) as scope:
            nested = self._run(inputs)
            outputs = keras.tree.flatten(nested)
            masks = [keras_internals.get_mask(output) for output in outputs]
            self._masked = [place for place, mask in enumerate(masks) if mask is not None]
            self._structure, self._draws = nested, scope.draws
            self._assigned, self._losses = scope.assigned, list(scope.losses)
            assigned = [scope.get_current_value(variable) for variable in scope.assigned]
        found = (outputs, [m for m in masks if m is not None], assigned, self._losses)
        self._counts = [len(part) for part in found]
        return [ops.convert_to_tensor(tensor) for part in found for tensor in part]

    def _split(self, found):
        parts, found = [], iter(found)
        for count in self._counts:
            parts.append([next(found) for _ in range(count)])
        return parts


def run_nodes(nodes, values, operation_fn):
    """Run nodes of a graph, as Keras does.

    Args:
        nodes: List of nodes, in order.
        values: Dict from ids of symbolic tensors to tensors, which gains the outputs.
        operation_fn: Function from an operation to what is called in its place.
    """
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        outputs = operation_fn(node.operation)(*args, **kwargs)
        values.update(zip(map(id, node.outputs), keras.tree.flatten(outputs), strict=False))


def _with_inner(layer):
    return keras_internals.layers_of(layer) if isinstance(layer, keras.Layer) else []


def _is_floating(tensor):
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))


def _tensor(value):
    return ops.convert_to_tensor(value)
