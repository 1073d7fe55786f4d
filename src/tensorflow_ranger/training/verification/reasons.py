"""Why the gradients of a batch and of its micro-batches differ."""

import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays, draws, keras_internals
from tensorflow_ranger.backend.batches import count
from tensorflow_ranger.backend.placed_draws import PlacedDraws
from tensorflow_ranger.training.call_scope import CallScope
from tensorflow_ranger.training.verification.dry_run import largest


def training_reasons(model, data, whole, differences):
    """Return which layers drew numbers that are not the whole batch's, or assigned state."""
    reasons = [
        f"The gradient of {path} is not finite."
        for path, difference in differences.items()
        if not math.isfinite(difference)
    ]
    before = [ops.convert_to_numpy(v.value) for v in whole.dry_run.seeds]
    unplaced = {id(variable) for variable in whole.dry_run.unplaced}
    drawn = [
        variable
        for variable, old, new in zip(whole.dry_run.seeds, before, whole.seeds, strict=True)
        if id(variable) in unplaced and not np.array_equal(old, new)
    ]
    drawers = _owners(model, drawn)
    if arrays.random_state():
        drawers += [call.layer for call in _calls(model, data[0], True) if call.drew]
    reasons += [
        f"{_name(layer)} drew random numbers, and draws others for each micro-batch."
        for layer in _once(drawers)
    ]
    reasons += [
        f"{_name(layer)} normalized each micro-batch by the micro-batch's own mean and variance."
        for layer in _owners(model, whole.dry_run.assigned())
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    return reasons


def state_reasons(state, parts, tolerance, is_explained):
    """Return which state and which numbers of a micro-batch do not add up to the batch's."""
    unknown = [
        f"{name[:1].upper()}{name[1:]} is neither a mean nor a sum over samples, but a function of "
        "the batch."
        for name in parts.dry_run.unknown
    ]
    if is_explained:  # what layers draw and normalize by changes the state of others
        return unknown
    named = " ".join(parts.dry_run.unknown)
    return unknown + [
        f"The state {name} ends with another value: {difference:.1e} apart."
        for name, difference in state.items()
        if not difference <= tolerance and name not in named
    ]


def loss_notes(parts):
    """Return what is to be said of a loss of the whole batch.

    Args:
        parts: `Record` of the batch in micro-batches.
    """
    reason = parts.dry_run.compiled_losses.whole_reason
    if reason is None:
        return []
    return [
        "Whole-batch loss: exact. It is computed on the outputs of the whole batch, since "
        f"{reason}; that takes one more forward pass."
    ]


def crossing_reasons(model, data, size, training, tolerance):
    """Return which layer made of the last micro-batch's samples what it does not in the batch."""
    x = data[0]
    last = count(data) % size or size
    alone = keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[-last:], x)
    for one, other in zip(_calls(model, x, training), _calls(model, alone, training), strict=False):
        if _same(one.inputs, other.inputs, tolerance) and not _same(
            one.outputs, other.outputs, tolerance
        ):
            return [
                f"{_name(one.layer)} looks across the batch: its output for a sample depends on "
                "the other samples."
            ]
    return []


def loss_reasons(parts, data, size, tolerance):
    """Return the losses whose gradient by the outputs differs in micro-batches.

    The outputs are held fixed, so what layers do plays no part.

    Args:
        parts: `Record` of the batch in micro-batches.
        data: Tuple ``(x, y, sample_weight)`` of the batch.
        size: Samples per micro-batch.
        tolerance: Relative difference that rounding explains.
    """
    if parts.dry_run.cuts or not parts.dry_run.loss_names:
        return []  # computed on all outputs; or what layers add, which depends on more than these
    gradients = [parts.dry_run.gradients_by_outputs(data, each) for each in (count(data), size)]
    found = []
    unknown = " ".join(parts.dry_run.unknown).lower()
    for name, whole, other in zip(parts.dry_run.loss_names, *gradients, strict=True):
        if name.lower() in unknown:
            continue
        difference = max(largest(a - b) for a, b in zip(whole, other, strict=True))
        scale = max(largest(array) for array in (*whole, *other))
        if not difference <= tolerance * scale:
            found.append(
                f"{name} is not a mean over samples: its gradient by the outputs is "
                f"{difference / scale:.1e} apart in micro-batches. Return one number per sample "
                "that depends on that sample alone."
            )
    return found


def _name(layer):
    return f"{type(layer).__name__} {(layer.path or layer.name)!r}"


def _owners(model, variables):
    """Return the innermost layers that own one of the variables, each once."""
    layers = keras_internals.layers_of(model)[::-1]  # inner layers before those around them
    holders = [
        [layer for layer in layers if any(v is variable for v in layer.variables)]
        for variable in variables
    ]
    return _once(min(found, key=lambda layer: len(layer.variables)) for found in holders if found)


def _once(layers):
    return list({id(layer): layer for layer in layers}.values())


@dataclasses.dataclass(frozen=True)
class _Call:
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


def _calls(model, x, training):
    """Return the calls of a forward pass, those within a layer before the layer's own."""
    calls = []

    def watched(layer):
        call = layer.call

        @functools.wraps(call)
        def watch(*args, **kwargs):
            states, within = arrays.random_state(), len(calls)
            outputs = call(*args, **kwargs)
            drew = states != arrays.random_state() and not any(c.drew for c in calls[within:])
            calls.append(_Call(layer, _arrays((args, kwargs)), _arrays(outputs), drew))
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


def _same(whole, last, tolerance):
    """Return whether arrays of a batch end with those of its last samples."""
    for one, other in zip(whole, last, strict=False):
        if one is None or other is None or one.ndim == 0:
            continue
        one = one[-len(other) :]
        if one.shape != other.shape:  # samples are not its first axis
            continue
        if not np.allclose(one, other, rtol=0, atol=tolerance * largest(one), equal_nan=True):
            return False
    return True
