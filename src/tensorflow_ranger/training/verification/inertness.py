"""Whether padding is inert: that a model computes the same without it."""

import collections
import math

import numpy as np
from keras import ops

from tensorflow_ranger.backend import replicas
from tensorflow_ranger.backend.batches import at, count
from tensorflow_ranger.distribution.reduction import on_all_replicas
from tensorflow_ranger.training.examination import resolution_of
from tensorflow_ranger.training.verification.calls import calls_of, name_of
from tensorflow_ranger.training.verification.dry_run import (
    DryRun,
    differences_of,
    is_over,
    largest,
    run,
    state_differences_of,
)

SAMPLES = 4  # that are looked at


def require_inert(model, data, padding, loss):
    """Raise unless a model computes the same on a few samples as on the same ones trimmed.

    Gradients, losses, the layers' state and the metrics are compared, from the same random numbers.

    Args:
        model: A compiled and built Keras model, whose variables hold their values.
        data: Tuple ``(x, y, sample_weight)`` of a batch.
        padding: `Padding` that cuts the batch.
        loss: "shares", "whole", or None to decide.

    Returns:
        Whether there was padding to look at.

    Raises:
        ValueError: Something differs: the message names the layer, loss or metric.
    """
    places = padding.most_padded(data[0], SAMPLES)
    # Replicas look together, as they sum what they find.
    if not on_all_replicas(ops.convert_to_tensor(len(places) > 0)):
        return False
    some = at(data, places)
    # On JAX, Keras rounds losses of float64 to float32.
    tolerance = max(math.sqrt(resolution_of(model)), 1e-5)
    whole, parts = _run_both(model, some, True, loss, padding)
    is_alone = replicas.count() == 1
    if is_alone and _differ(whole, parts, tolerance) and parts.dry_run.unplaced:
        # What has no place in the batch is drawn in other shapes.
        whole, parts = _run_both(model, some, False, loss, padding)
    if _differ(whole, parts, tolerance):
        reason = inertness_reason(model, some, padding, (whole, parts), tolerance)
        raise ValueError(
            f"padding={padding.value!r} would train another model. {reason} Let masks or sample "
            "weights leave it out, or call microbatch without padding=."
        )
    return True


def inertness_reason(model, data, padding, records, tolerance):
    """Return a sentence that names what the padding of a batch changes.

    Args:
        model: A compiled and built Keras model.
        data: Tuple ``(x, y, sample_weight)``.
        padding: `Padding`.
        records: The `Record` of the batch as it is, and that of its trimmed micro-batches.
        tolerance: Relative difference that rounding explains.
    """
    padded = at(data, padding.most_padded(data[0], SAMPLES))
    (trimmed,) = padding.slices(padded, count(padded))
    lengths = padding.lengths_of(padded[0], padding.sizes_of(padded[0]))
    for one, other in _pairs(model, padded[0], trimmed.of(padded)[0]):
        alike = _alike(one.inputs, other.inputs, lengths, tolerance)
        if alike and not _alike(one.outputs, other.outputs, lengths, tolerance):
            name = name_of(one.layer)
            if one.layer is model:
                name = "What the model computes between its layers"
            return f"{name} depends on the padding behind a sample's end."
    whole, parts = records
    for name, one, other in zip(parts.dry_run.loss_names, whole.parts, parts.parts, strict=False):
        if not abs(one - other) <= tolerance * abs(one):
            return f"{name} counts what stands behind a sample's end."
    for variable, one, other in _metrics(whole, parts):
        if not _same(one, other, tolerance):
            return (
                f"The metric {variable.path.split('/')[0]!r} counts what stands behind a sample's "
                "end, as it does in plain fit: give it a mask, or compile it as one of "
                "weighted_metrics."
            )
    return "Its gradient is another one when samples are trimmed to their length."


def _run_both(model, data, training, loss, padding):
    return [
        run(DryRun(model, False, training, loss, each), data, count(data))
        for each in (None, padding)
    ]


def _pairs(model, x, shorter):
    """Return pairs of the calls of each layer that is called as often with both inputs."""
    calls = calls_of(model, x, False)
    others = collections.defaultdict(list)
    for call in calls_of(model, shorter, False):
        others[id(call.layer)].append(call)
    # PyTorch calls a cell once for each step.
    times = collections.Counter(id(call.layer) for call in calls)
    common = {key for key, number in times.items() if len(others[key]) == number}
    return [(c, others[id(c.layer)].pop(0)) for c in calls if id(c.layer) in common]


def _differ(whole, parts, tolerance):
    return (
        is_over(differences_of(whole, parts, tolerance), tolerance)
        or is_over(state_differences_of(whole, parts, tolerance), tolerance)
        or not abs(whole.loss - parts.loss) <= tolerance * abs(whole.loss)
        or any(not _same(one, other, tolerance) for _, one, other in _metrics(whole, parts))
    )


def _metrics(whole, parts):
    """Return the variables of metrics that add up over samples, with both values."""
    of_samples = parts.dry_run.metrics_of_batch.of_samples()
    return [
        each
        for each in zip(parts.dry_run.metrics, whole.metrics, parts.metrics, strict=True)
        if id(each[0]) in of_samples
    ]


def _same(one, other, tolerance):
    return largest(one - other) <= tolerance * largest(one)


def _alike(whole, parts, lengths, tolerance):
    """Return whether arrays agree where samples have real steps."""
    for one, other in zip(whole, parts, strict=False):
        if one is None or other is None or one.ndim != other.ndim:
            continue
        one = one[tuple(slice(size) for size in other.shape)]
        if one.shape != other.shape:
            return False
        if one.ndim > 1 and len(one) == len(lengths):
            is_real = np.arange(one.shape[1]) < lengths.max(axis=1, keepdims=True)
            is_real = is_real.reshape(*is_real.shape, *[1] * (one.ndim - 2))
            one, other = np.where(is_real, one, 0), np.where(is_real, other, 0)
        if not np.allclose(one, other, rtol=0, atol=tolerance * largest(one), equal_nan=True):
            return False
    return True
