"""TensorFlow: functions that the backward pass runs again, so that it need not keep their work."""

import math
from typing import Any

import tensorflow as tf

from tensorflow_ranger.backend.tensorflow.recorder import recorder

# Their outputs share the memory of their first input.
_ALIASES = ("ExpandDims", "Identity", "Reshape", "Squeeze", "StopGradient")
_NONE = tf.UnconnectedGradients.ZERO


def replayed(function, inputs, weights):
    """Return ``function(inputs, weights)``; a backward pass runs it again.

    Args:
        function: Function of two lists of tensors that returns a list of tensors.
        inputs: List of tensors.
        weights: List of floating tensors.
    """
    tape: Any = recorder.get()
    if tape is None:
        return function(inputs, weights)
    outputs, count = [], len(inputs)

    @tf.custom_gradient
    def run(*tensors):
        with tape.stop_recording():
            outputs.extend(function(list(tensors[:count]), list(tensors[count:])))

        def backward(*slopes):
            given = [*_after(slopes, tensors[:count]), *map(tf.identity, tensors[count:])]
            with tf.GradientTape() as inner:
                inner.watch(_floating(given))
                again = _floating(function(given[:count], given[count:]))
            found = inner.gradient(again, _floating(given), list(slopes), _NONE)
            # The gradients of weights must not wait while the functions before run again.
            with tf.control_dependencies(tf.nest.flatten(found, expand_composites=True)):
                found = iter(tf.nest.map_structure(tf.identity, found, expand_composites=True))
            return [next(found) if each.dtype.is_floating else None for each in given]

        return _floating(outputs), backward

    floating = _floating(inputs)
    inputs = [x if x.dtype.is_floating else _after(floating, [x])[0] for x in inputs]
    found = iter(run(*inputs, *weights))
    return [next(found) if each.dtype.is_floating else each for each in outputs]


def _floating(tensors):
    return [tensor for tensor in tensors if tensor.dtype.is_floating]


def _after(first, inputs):
    """Return the inputs, but not before there is the first tensor of `first`.

    What depends on seeds alone would be drawn for all functions at once, and a function would run
    again as soon as its inputs are there. XLA keeps to no control dependencies; that nothing is
    greater than infinity, it does not see.
    """
    if not first:
        return inputs
    never = tf.reduce_sum(tf.reshape(first[0], [-1])[:1]) > float("inf")
    return [tf.where(never, tf.zeros((), x.dtype), x) for x in inputs]


def bytes_kept(function, inputs, weights):
    """Return the bytes that a backward pass keeps of what ``function(inputs, weights)`` makes.

    A graph of both passes is traced, and nothing is computed.
    """
    made, used = set(), {}

    def trace(inputs, weights):
        given = [*inputs, *weights]
        with tf.GradientTape() as tape:
            tape.watch(_floating(given))
            outputs = _floating(function(inputs, weights))
        graph = tf.compat.v1.get_default_graph()
        forward = graph.get_operations()
        made.update(t.name for op in forward if op.type != "Placeholder" for t in op.outputs)
        tape.gradient(outputs, _floating(given))
        for op in graph.get_operations()[len(forward) :]:
            tensors = map(_source_of, op.inputs)
            used.update((tensor.name, tensor) for tensor in tensors)

    tf.function(trace, autograph=False).get_concrete_function(inputs, weights)
    return sum(_bytes_of(tensor) for name, tensor in used.items() if name in made)


def _source_of(tensor):
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[0]
    return tensor


def _bytes_of(tensor):
    sizes = tensor.shape.as_list() if tensor.shape.rank is not None else []
    return math.prod(size or 1 for size in sizes) * tensor.dtype.size
