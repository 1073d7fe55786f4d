"""Whether the head of a model can be divided into chunks, decided from the first batch."""

import math

import keras

from tensorflow_ranger.backend import keras_internals, replicas
from tensorflow_ranger.backend.batches import has_sparse
from tensorflow_ranger.training.chunked_head.additivity import RowsTried
from tensorflow_ranger.training.chunked_head.chunked_head import LEAST_BYTES, ChunkedHead
from tensorflow_ranger.training.chunked_head.layers import head_layers_of
from tensorflow_ranger.training.chunked_head.rows import why_no_rows
from tensorflow_ranger.training.rematerialization.chain import bytes_per_number


def found_head(model, data, *, tasks, loss, padding, count, is_forced):
    """Return the `ChunkedHead` of a model, or None; and why the head stays whole, or None.

    Args:
        model: A compiled and built Keras model.
        data: Tuple ``(x, y, sample_weight)`` of a batch.
        tasks: `Tasks` whose gradients are summed apart, or None.
        loss: "shares", "whole", or None to decide: see `microbatch`.
        padding: Number that stands behind the end of each sample, or None.
        count: Chunks of a micro-batch, or None for as many as are good.
        is_forced: Whether to divide it even where the logits are small.

    Returns:
        Tuple ``(head, reason)``. Both are None where the logits are too small to ask.
    """
    _, y, sample_weight = data
    if replicas.has_several(model.variables):  # of which each holds arrays of its own
        return None, "several replicas train the model" if is_forced else None
    layers, reason = head_layers_of(model)
    if layers is None:
        return None, reason if is_forced else None
    axes = layers.rank - 1
    reason = why_no_rows(y, sample_weight, axes)
    if reason is None and not is_forced:
        shape = keras.tree.flatten(y)[0].shape[:axes]
        if math.prod(shape) * layers.outputs * bytes_per_number(layers.dtype) < LEAST_BYTES:
            return None, None
    reason = reason or _why_whole(model, data, tasks, padding)
    if reason is not None:
        return None, reason
    tried = RowsTried(model, layers, loss, y, sample_weight)
    if tried.reason is not None:
        return None, tried.reason
    return ChunkedHead(layers, tried.counts_samples, count, is_forced), None


def _why_whole(model, data, tasks, padding):
    if type(model).compute_loss is not keras.Model.compute_loss:
        return f"{type(model).__name__} overrides compute_loss"
    if type(model).compute_metrics is not keras.Model.compute_metrics:
        return f"{type(model).__name__} overrides compute_metrics"
    if tasks is not None:
        return "multitask takes the gradients of several losses"
    if has_sparse(data):
        return "the batch has sparse arrays"
    metrics = keras_internals.compiled_metrics(model)
    if padding is not None and metrics is not None and metrics.variables:
        return "padding= fills outputs up for the metrics"
    return None
