"""Why the gradients of a batch and of its micro-batches differ."""

import math

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.backend.batches import count, mapped
from tensorflow_ranger.training.verification.calls import calls_of, name_of
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
        drawers += [call.layer for call in calls_of(model, data[0], True) if call.drew]
    reasons += [
        f"{name_of(layer)} drew random numbers, and draws others for each micro-batch."
        for layer in _once(drawers)
    ]
    reasons += [
        f"{name_of(layer)} normalized each micro-batch by the micro-batch's own mean and variance."
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
    alone = mapped(lambda leaf: leaf[-last:], x)
    both = calls_of(model, x, training), calls_of(model, alone, training)
    for one, other in zip(*both, strict=False):
        if _same(one.inputs, other.inputs, tolerance) and not _same(
            one.outputs, other.outputs, tolerance
        ):
            return [
                f"{name_of(one.layer)} looks across the batch: its output for a sample depends on "
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
