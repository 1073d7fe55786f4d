"""Whether a model's losses and metrics are sums over the rows of outputs: tried on a few rows."""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.batches import count, cut
from tensorflow_ranger.backend.phases import BatchTotals
from tensorflow_ranger.training.chunked_head.rows import (
    as_rows,
    rows_of_sample,
    targets_as_rows,
    weights_as_rows,
)
from tensorflow_ranger.training.compiled_losses import CompiledLosses, copies
from tensorflow_ranger.training.invented import among_targets
from tensorflow_ranger.training.metrics_of_batch import MetricsOfBatch

_SAMPLES, _STEPS = 4, 3  # that are tried, at most
_DTYPE = "float32"  # of samples and masses


class RowsTried:
    """Compares losses and metrics of a few samples with those of their rows in two chunks.

    The outputs and weights are random, and half of the outputs are near to their targets: what a
    metric counts is to be found. The targets are compared once more beside invented ones.

    Args:
        model: A compiled and built Keras model.
        head: Its `HeadLayers`.
        loss: "shares", "whole", or None to decide: see `microbatch`.
        y: Targets of a batch.
        sample_weight: Its sample weights, or None.
    """

    def __init__(self, model, head, loss, y, sample_weight):
        self._model = model
        self._head = head
        self._axes = head.rank - 1
        self._losses = CompiledLosses(model, None, loss)
        self._metrics = MetricsOfBatch(model)
        self._rng = np.random.default_rng(0)
        #: Of each of the metrics' variables: whether it counts samples, and not rows.
        self.counts_samples = [False] * len(model.metrics_variables)
        y = keras.tree.map_structure(self._few, y)
        weight = keras.tree.map_structure(self._random, sample_weight)
        try:
            self.reason = self._compare(y, weight, self._mask(y))
        except Exception as error:
            self.reason = (
                "a loss or a metric cannot be called on some of the rows of outputs "
                f"({type(error).__name__}: {error})"
            )
        if self.reason is None and count(y) > 1:
            others = among_targets(y, count(y) // 2)
            with contextlib.suppress(Exception):  # a loss may refuse such targets
                self.reason = self._of_losses(*self._seen_both_ways(others, weight, self._mask(y)))

    def _few(self, leaf):
        """Return a few steps, from all of a sample, of a few samples."""
        first, spread = [slice(0, _SAMPLES)], [slice(0, _SAMPLES)]
        for size in leaf.shape[1 : self._axes]:
            spread.append(slice(0, None, max(1, size // _STEPS)))
            first.append(slice(0, _STEPS))
        return ops.convert_to_tensor(leaf[tuple(spread)][tuple(first)])

    def _random(self, weight):
        if weight is None:
            return None
        shape = self._few(ops.zeros(weight.shape)).shape
        return ops.convert_to_tensor(self._rng.uniform(0.5, 1.5, shape), weight.dtype)

    def _mask(self, y):
        graph: Any = keras_internals.graph_of(self._model)
        (output,) = graph.outputs
        if keras_internals.get_mask(output) is None:
            return None
        return ops.convert_to_tensor(self._rng.random(_shape_of(y, self._axes)) < 0.7)

    def _logits_near(self, y):
        """Return random logits, of which half are large for the class of the target."""
        (target,) = keras.tree.flatten(y)
        shape = (*_shape_of(y, self._axes), self._head.outputs)
        logits = self._rng.normal(size=shape)
        target = np.asarray(ops.convert_to_numpy(target))
        if target.shape != shape:
            if target.shape[self._axes :] == (1,):
                target = target[..., 0]
            target = target[..., None] == np.arange(shape[-1])
        near = self._rng.random((*shape[:-1], 1)) < 0.5
        return ops.convert_to_tensor(logits + 9.0 * target * near, self._head.dtype)

    def _compare(self, y, sample_weight, mask):
        whole, parts, number = self._seen_both_ways(y, sample_weight, mask)
        shape = _shape_of(y, self._axes)
        return self._of_losses(whole, parts, number) or self._of_metrics(whole, parts, shape)

    def _seen_both_ways(self, y, sample_weight, mask):
        """Return what losses see of all rows, what they see of two chunks, and how many rows."""
        axes, logits = self._axes, self._logits_near(y)
        shape = tuple(logits.shape[:-1])
        rows = (
            targets_as_rows(y, axes),
            as_rows(logits, axes),
            weights_as_rows(sample_weight, shape),
            None if mask is None else as_rows(mask, axes),
        )
        number = count(rows)
        parts = [(0, number // 2), (number // 2, number - number // 2)]
        parts = [self._seen(*cut(rows, start, size)) for start, size in parts if size]
        return self._seen(y, logits, sample_weight, mask), parts, number

    def _seen(self, y, logits, sample_weight, mask):
        """Return targets, outputs and weights."""
        for layer in self._head.layers:
            if isinstance(layer, keras.layers.Softmax):
                logits = layer(logits)
            elif getattr(layer, "activation", None) is not None:
                logits = layer.activation(logits)
        if mask is not None:
            keras_internals.set_mask(logits, mask)
        return y, keras.tree.pack_sequence_as(self._head.graph.output, [logits]), sample_weight

    def _of_losses(self, whole, parts, number):
        losses, (y, y_pred, weight) = self._losses, whole
        # Within `fit` on JAX, weights with a regularizer have no values.
        losses.inspect_outputs(y, y_pred, copies(weight))
        if losses.is_whole:
            return losses.whole_reason
        if losses.masks_unforeseen:
            name = losses.name(losses.masks_unforeseen[0])
            return f"the loss {name} masks its values in a way that only outputs tell"
        masses = None
        if losses.needs_masses:
            masses = losses.masses(y, y_pred, copies(weight), _DTYPE)
        totals = BatchTotals(ops.cast(number, _DTYPE), masses, None, None)

        def shares(part):
            y, y_pred, weight = part
            samples = ops.cast(count(y), _DTYPE) if part is not whole else totals.samples
            found = losses.of_outputs(y, y_pred, copies(weight), samples, totals)
            return [found.total, *found.parts, *found.unlogged]

        sums = [sum(each) for each in zip(*map(shares, parts), strict=True)]
        if all(map(_are_close, shares(whole), sums)):
            return None
        return "the loss of a few rows of outputs is not that of each of them"

    def _of_metrics(self, whole, parts, shape):
        compiled = keras_internals.compiled_metrics(self._model)
        owners = (
            {} if compiled is None else {id(v): m for m in compiled.metrics for v in m.variables}
        )
        variables = self._model.metrics_variables
        after = zeros = [ops.zeros(v.shape, v.dtype) for v in variables]
        for y, y_pred, weight in parts:
            after = self._metrics.updated(after, y, y_pred, copies(weight))
        y, y_pred, weight = whole
        expected = self._metrics.updated(zeros, y, y_pred, copies(weight))
        steps = rows_of_sample(shape)
        for place, variable in enumerate(variables):
            value, found = (_array(each[place]) for each in (expected, after))
            if id(variable) not in owners:
                continue
            counts_rows, counts_samples = _are_close(value, found), _are_close(value, found / steps)
            if steps > 1 and counts_rows == counts_samples:  # or it is zero, which tells nothing
                name = owners[id(variable)].name
                return f"the metric {name!r} is not known to be a mean or a sum of rows"
            self.counts_samples[place] = not counts_rows
        return None


def _shape_of(y, axes):
    return tuple(keras.tree.flatten(y)[0].shape[:axes])


def _are_close(value, other):
    value, other = _array(value), _array(other)
    largest = np.max(np.abs(value), initial=0.0)
    return bool(np.allclose(value, other, rtol=0, atol=1e-4 * largest, equal_nan=True))


def _array(value):
    return np.asarray(ops.convert_to_numpy(value), "float64")
