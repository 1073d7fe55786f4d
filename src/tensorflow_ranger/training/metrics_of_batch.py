"""Metrics that are functions of the whole batch, in a batch that is run in micro-batches."""

import math
import warnings

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import keras_internals, replicas
from tensorflow_ranger.training.call_scope import CallScope
from tensorflow_ranger.training.probe import adds_up

_OF_BATCH = (keras.losses.dice, keras.losses.tversky)

MOST_BYTES = 2**28  # of a batch's outputs that are held for a metric


class MetricsOfBatch:
    """The metrics of `compile`, and those among them that are not sums over samples.

    Keras' own metric objects add up over samples, and so they do over micro-batches. A function of
    the batch (an F1 score, a maximum) does not: it is called once per batch, on the outputs of all
    micro-batches, as Keras calls it. Where these would be larger than `MOST_BYTES`, or where
    replicas meet within one compiled step, it is called for each micro-batch, and weighed by
    samples. A metric that a layer updates with the mean of its samples, such as the divergence in a
    variational autoencoder, is weighed by samples, too: only the layer's call has its values.

    Args:
        model: A compiled Keras model.
    """

    def __init__(self, model):
        self._model = model
        self._bytes = 0
        self._of_batch = set()
        self._are_per_row = False
        self._outputs_are_numbers = False
        self._means = set()
        self.own = []  #: Metrics that are updated in the forward pass: each a list of variables.
        self.gathers = False

    @property
    def are_of_batch(self):
        """Whether a metric is a function of the whole batch."""
        return bool(self._of_batch)

    @property
    def unclear(self):
        """Metrics of which only a comparison tells whether they add up."""
        compiled = keras_internals.compiled_metrics(self._model)
        if compiled is None or self._are_per_row:
            return []
        if self._outputs_are_numbers:
            return list(compiled.metrics)
        return [metric for metric in compiled.metrics if not _is_known_sum(metric)]

    def find(self, y_pred, samples):
        """Learn how large the outputs of a batch of `samples` are; None is unknown."""
        shapes = [(leaf.shape[1:], leaf.dtype) for leaf in keras.tree.flatten(y_pred)]
        per_sample = sum(
            math.prod(size or 0 for size in shape) * _itemsize(dtype) for shape, dtype in shapes
        )
        self._bytes = per_sample * (samples or 0)
        # Of outputs without a second axis Keras' functions take the mean over the batch.
        self._outputs_are_numbers = any(len(shape) == 0 for shape, _ in shapes)

    def find_own(self, assigned, has_own_loss):
        """Find the metrics beside those of `compile` that a forward pass updates.

        Args:
            assigned: The variables that a forward pass has assigned.
            has_own_loss: Whether the model's own loss may update metrics, too.
        """
        compiled = keras_internals.compiled_metrics(self._model)
        known = set() if compiled is None else {id(v) for v in compiled.variables}
        seen = {id(v) for v in assigned}
        self.own = [
            metric.variables
            for metric in self._model.metrics
            if known.isdisjoint(map(id, metric.variables))
            and (has_own_loss or not seen.isdisjoint(map(id, metric.variables)))
        ]

    def learn(self, pairs, tolerance):
        """Find the metrics whose variables differ between a batch and its parts.

        Args:
            pairs: List of pairs: the metrics' variables after an update with all samples, and
                those after updates with one part after the other.
            tolerance: Relative difference that rounding explains.
        """
        variables = self._model.metrics_variables
        values = [
            dict(zip(map(id, variables), zip(whole, parts, strict=True), strict=True))
            for whole, parts in pairs
        ]

        def differs(metric):
            return any(
                not _same(*each[id(v)], tolerance) for each in values for v in metric.variables
            )

        self._take([metric for metric in self.unclear if differs(metric)])

    def learn_own(self, looks, fraction):
        """Find the metrics that the forward pass gives means over its samples.

        Args:
            looks: Lists of the metrics' variables before, after all samples, after the first part,
                and after the rest that followed it.
            fraction: Fraction of the samples in the first part.
        """
        places = {id(v): i for i, v in enumerate(self._model.metrics_variables)}
        for variables in self.own:
            begun, whole, first, continued = (
                [look[places[id(v)]] for v in variables] for look in looks
            )
            if not adds_up(begun, whole, first, continued, fraction):
                self._means.update(id(v) for v in variables)

    def know_rows_apart(self):
        """Learn that all metrics add up over rows of outputs."""
        self._are_per_row = True

    def assume_of_batch(self):
        """Take all unclear metrics for functions of the batch: that is right for any."""
        self._take(self.unclear)

    def _take(self, found):
        variables = self._model.metrics_variables
        self._of_batch = {id(v) for metric in found for v in metric.variables}
        in_one_step = replicas.meet_in_step(variables)
        self.gathers = bool(found) and self._bytes <= MOST_BYTES and not in_one_step
        if found and not self.gathers:
            why = (
                "replicas meet within one compiled step"
                if in_one_step
                else f"the outputs of a batch take {self._bytes / 1e6:.0f} MB"
            )
            warnings.warn(
                f"The metrics {', '.join(metric.name for metric in found)} are functions of the "
                f"batch, and {why}: they are computed for each micro-batch and weighed by its "
                "samples, which is another number than that of the whole batch.",
                stacklevel=2,
            )

    def updated(self, values, y, y_pred, sample_weight):
        """Return the metrics' variables after an update, from `values`."""
        compiled = keras_internals.compiled_metrics(self._model)
        if compiled is None:
            return list(values)
        variables = self._model.metrics_variables
        with CallScope(zip(variables, values, strict=True)) as scope:
            compiled.update_state(y, y_pred, sample_weight)
        return [scope.get_current_value(v) for v in variables]

    def after_call(self, before, values, fraction):
        """Return the metrics' variables after a micro-batch's forward pass.

        Args:
            before: Their values before the micro-batch.
            values: Their values as the layers left them.
            fraction: Scalar; the micro-batch's fraction of the batch's samples.
        """
        if not self._means:
            return values
        return [
            _moved(old, new, fraction) if id(variable) in self._means else new
            for variable, old, new in zip(
                self._model.metrics_variables, before, values, strict=True
            )
        ]

    def added(self, before, values, seen, fraction):
        """Return the metrics' variables after a micro-batch.

        Args:
            before: Their values before the micro-batch.
            values: Their values after its forward pass, which may have changed some.
            seen: Tuple ``(y, y_pred, sample_weight)``.
            fraction: Scalar; the micro-batch's fraction of the batch's samples.
        """
        updated = self.updated(values, *seen)
        for place, variable in enumerate(self._model.metrics_variables if self._of_batch else ()):
            if id(variable) not in self._of_batch:
                continue
            if self.gathers:
                updated[place] = values[place]
            else:
                updated[place] = _moved(before[place], updated[place], fraction)
        return updated

    def of_samples(self):
        """Return the ids of the variables of compiled metrics that add up over samples."""
        compiled = keras_internals.compiled_metrics(self._model)
        variables = [] if compiled is None else compiled.variables
        return {id(v) for v in variables} - self._of_batch

    def update(self, y, y_pred, sample_weight):
        """Update the metrics that are functions of the batch with the batch."""
        variables = self._model.metrics_variables
        values = self.updated([v.value for v in variables], y, y_pred, sample_weight)
        for variable, value in zip(variables, values, strict=True):
            if id(variable) in self._of_batch:
                variable.assign(value)


def with_masks(y_pred):
    """Return outputs and their masks as plain tensors, which leave a compiled function."""
    return y_pred, [keras_internals.get_mask(leaf) for leaf in keras.tree.flatten(y_pred)]


def outputs_and_masks(y_pred):
    """Return the outputs, and then those masks that there are, as one list."""
    outputs, masks = with_masks(y_pred)
    return [*keras.tree.flatten(outputs), *(mask for mask in masks if mask is not None)]


def masked(y_pred, masks):
    """Return outputs with which Keras finds their masks again."""
    for leaf, mask in zip(keras.tree.flatten(y_pred), masks, strict=True):
        if mask is not None:
            keras_internals.set_mask(leaf, mask)
    return y_pred


def joined(outputs):
    """Return the outputs of a batch, with masks, from those of its micro-batches."""
    parts, masks = zip(*outputs, strict=True)
    y_pred = keras.tree.map_structure(lambda *leaves: ops.concatenate(leaves), *parts)
    for leaf, *each in zip(keras.tree.flatten(y_pred), *masks, strict=True):
        if each[0] is not None:
            keras_internals.set_mask(leaf, ops.concatenate(each))
    return y_pred


def _is_known_sum(metric):
    """Return whether Keras' own code says that a metric is a sum over samples."""
    function = keras_internals.metric_function(metric)
    if isinstance(function, keras.losses.Loss) or function in _OF_BATCH:
        return False
    return all(
        (thing.__module__ or "").split(".")[0] == "keras"
        for thing in (type(metric), function if callable(function) else type(function))
    )


def _moved(before, after, fraction):
    gained = after - before
    return before + gained * ops.cast(fraction, gained.dtype)


def _same(whole, parts, tolerance):
    whole, parts = np.asarray(whole, "float64"), np.asarray(parts, "float64")
    scale = max(np.max(np.abs(whole), initial=0.0), np.max(np.abs(parts), initial=0.0))
    return bool(np.allclose(whole, parts, rtol=0, atol=tolerance * scale, equal_nan=True))


def _itemsize(dtype):
    name = keras.backend.standardize_dtype(dtype)
    return 2 if name == "bfloat16" else np.dtype(name).itemsize
