"""A part of a model's forward pass as a function that can be run again: the same every time."""

import collections
import contextlib
from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals, replay
from tensorflow_ranger.training.call_scope import CallScope


class _Run(NamedTuple):
    """What is known of the list that a segment returns. It holds no tensors."""

    structure: Any  #: The nested outputs, with zeros in their place.
    masked: list[int]  #: Places of the outputs that have a mask.
    assigned: list[Any]  #: Variables, in the order of their values.
    losses: list[int]  #: The ids of the losses that layers have added.
    draws: Any  #: `PlacedDraws` after the layers' calls.


_DONE = _Run(None, [], [], [], None)


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
        self._count = len(inputs)
        masks = [keras_internals.get_mask(tensor) for tensor in inputs]
        self._masked = [place for place, mask in enumerate(masks) if mask is not None]
        self._layers = [each for layer in layers for each in with_inner(layer)]
        scope = CallScope.current()
        self._begun = scope.begun_again({})
        self._state = keras_internals.call_state()
        variables = {id(v): v for layer in self._layers for v in layer.variables}
        self._weights = [key for key, v in variables.items() if v.trainable and _is_floating(v)]
        self._others = [key for key in variables if key not in self._weights]
        with keras_internals.in_call_state({}):
            values = {key: ops.convert_to_tensor(v.value) for key, v in variables.items()}
        masks = [mask for mask in masks if mask is not None]
        given = [*inputs, *masks, *(values[key] for key in self._others)]
        #: What `function` is called with: inputs, masks and values of state, and weights.
        self.arguments: Any = given, [values[key] for key in self._weights]
        self._first: Any = None  # `_Run`

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
    def of_nodes(cls, nodes, values, operation_fn, wanted):
        """Return the segment of some nodes of a graph, and the ids of the tensors it returns.

        Args:
            nodes: List of nodes that follow each other.
            values: Dict from ids of symbolic tensors to tensors, or None for an optional input.
            operation_fn: As in `run_nodes`.
            wanted: As in `run_nodes`.
        """
        made = {id(output): None for node in nodes for output in node.outputs}
        needed = {id(x): None for node in nodes for x in node.input_tensors if id(x) not in made}
        keys = [key for key in needed if values[key] is not None]
        results = [key for key in made if key in wanted]

        def run(tensors):
            inner = {**needed, **dict(zip(keys, tensors, strict=True))}
            run_nodes(nodes, inner, operation_fn, wanted)
            return [inner[key] for key in results]

        operations = [node.operation for node in nodes]
        return cls(run, [values[key] for key in keys], operations), results

    def replayed(self):
        """Return what the layers return; a backward pass runs them again."""
        arguments, self.arguments = self.arguments, None  # what repeats must not hold on to them
        found = iter(replay.replayed(self.function, *arguments))
        first, scope = self._first, CallScope.current()
        self._first = _DONE
        outputs = [next(found) for _ in keras.tree.flatten(first.structure)]
        for place in first.masked:
            keras_internals.set_mask(outputs[place], next(found))
        for variable in first.assigned:
            scope.add_update((variable, next(found)))
        losses = list(found)
        for loss in losses:
            scope.add_loss(loss)
        keras_internals.hand_on_losses(self._layers, first.losses, losses)
        if scope.draws is not None:
            scope.draws.go_on_from(first.draws)
        return keras.tree.pack_sequence_as(first.structure, outputs)

    def bytes_kept(self):
        """Return the bytes that the backward pass keeps if it does not run the layers again."""
        return replay.bytes_kept(self.function, *self.arguments)

    def function(self, inputs, weights):
        """Return the outputs, their masks, the values assigned and the losses added, as a list."""
        given, inputs = iter(inputs[self._count :]), inputs[: self._count]
        for place in self._masked:
            keras_internals.set_mask(inputs[place], next(given))
        state = list(given)
        values = dict(zip([*self._weights, *self._others], [*weights, *state], strict=True))
        with self._again(values) as scope:
            nested = self._run(inputs)
            outputs = keras.tree.flatten(nested)
            masks = [keras_internals.get_mask(output) for output in outputs]
            assigned = [scope.get_current_value(variable) for variable in scope.assigned]
        if self._first is None:
            self._first = _Run(
                keras.tree.map_structure(lambda _: 0, nested),
                [place for place, mask in enumerate(masks) if mask is not None],
                scope.assigned,
                [id(loss) for loss in scope.losses],
                scope.draws,
            )
        masks = [mask for mask in masks if mask is not None]
        return list(map(ops.convert_to_tensor, [*outputs, *masks, *assigned, *scope.losses]))

    @contextlib.contextmanager
    def _again(self, values):
        # Lists of rows would be collected in the replay, too: tables have dense gradients here.
        state = keras_internals.in_call_state(self._state)
        calls, lookups = keras_internals.calling_by(None), keras_internals.looking_up_by(None)
        with state, calls, lookups, self._begun.begun_again(values) as scope:
            yield scope


def run_nodes(nodes, values, operation_fn, wanted):
    """Run nodes of a graph, as Keras does.

    Args:
        nodes: List of nodes, in order.
        values: Dict from ids of symbolic tensors to tensors. It gains the outputs, and loses what
            none of the nodes needs any more.
        operation_fn: Function from an operation to what is called in its place.
        wanted: Set of the ids of symbolic tensors that are needed later.
    """
    uses = collections.Counter(id(x) for node in nodes for x in node.input_tensors)
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        outputs = operation_fn(node.operation)(*args, **kwargs)
        values.update(zip(map(id, node.outputs), keras.tree.flatten(outputs), strict=False))
        for key in map(id, node.input_tensors):
            uses[key] -= 1
            if not uses[key] and key not in wanted:
                values.pop(key, None)


def needed_by(nodes, graph):
    """Return the ids of the symbolic tensors that `nodes` take, or that `graph` returns."""
    return {id(x) for x in (*(x for node in nodes for x in node.input_tensors), *graph.outputs)}


def end_of(graph, nodes, head):
    """Return the number of `nodes` of `graph` before those of `head`: `HeadLayers` or None."""
    return head.start if head is not None and head.graph is graph else len(nodes)


def outputs_of(graph, values, left_out=()):
    """Return the nested outputs of `graph`, from a dict of tensors by ids of symbolic ones.

    Args:
        graph: The `keras.Function`.
        values: The dict.
        left_out: Nodes that end the graph and have not run. What the first of them takes is
            returned in place of the output.
    """
    outputs = left_out[0].input_tensors if left_out else graph.outputs
    return keras.tree.pack_sequence_as(graph.output, [values[id(output)] for output in outputs])


def with_inner(layer):
    """Return the layers within `layer`, itself first; of another operation there are none."""
    return keras_internals.layers_of(layer) if isinstance(layer, keras.Layer) else []


def _is_floating(tensor):
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))
