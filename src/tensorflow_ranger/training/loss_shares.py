"""Each micro-batch's share of its batch's loss, whatever the losses divide by."""

import functools
import warnings
from typing import Any

import keras
from keras import ops

from tensorflow_ranger.backend import replicas

_MEANS = ("mean", "sum_over_batch_size")


class LossShares:
    """Splits a compiled model's loss into shares whose sum over micro-batches is the batch's loss.

    Keras divides a loss by the number of samples, by the unmasked elements, by the sum of the
    sample weights, or not at all. With the micro-batch's own loss ``L_k`` and mass ``D_k`` the
    share is ``L_k D_k / D``: exact whatever the sizes, because ``L_k D_k`` is the sum that Keras
    divided. Losses a layer adds are means over samples if they are scalars, and sums over samples
    if they hold one number per sample. Regularizers of weights count once per batch.

    Args:
        model: A compiled Keras model.
        tasks: `Tasks` whose losses are to be differentiated apart, or None.
    """

    def __init__(self, model, tasks=None):
        self._model = model
        self._tasks = tasks
        self._compile_loss = model._compile_loss
        self._is_own = type(model).compute_loss is not keras.Model.compute_loss
        self._places = []
        self._divided = []
        self._has_added = False
        self.needs_masks = False
        self.not_means = []
        if self._is_own:
            warnings.warn(
                f"{type(model).__name__} overrides compute_loss: its micro-batches are weighted by "
                "their samples. That is exact if the loss is a mean over samples.",
                stacklevel=2,
            )

    @property
    def losses(self):
        """Keras' records ``(path, loss, loss_weights, name)`` of the compiled losses."""
        if self._is_own or self._compile_loss is None:
            return []
        return self._compile_loss._flat_losses

    @property
    def needs_masses(self):
        """Whether a loss divides by something else than its number of samples."""
        return bool(self._places)

    @property
    def rows(self):
        """How many losses are differentiated: one, or one per task and what is added to them."""
        return 1 if self._tasks is None else len(self._tasks.groups) + self._has_added

    def inspect(self, y, y_pred, sample_weight):
        """Learn from one micro-batch's predictions what each loss divides by."""
        self._places, self.needs_masks, self.not_means, self._divided = [], False, [], []
        self._structure = keras.tree.map_structure(lambda _: None, y_pred)

        def look(place, loss, y_true, y_pred, sample_weight):
            if not _is_keras_call(loss):
                self.not_means.append(loss.name)
                return
            if _mass(loss, y_pred, sample_weight) is not None:
                self._places.append(place)
                self.needs_masks |= _mask(y_pred) is not None
            if loss.reduction == "sum":
                return
            if _returns_scalar(loss, y_true, y_pred):
                self.not_means.append(loss.name)
            elif loss.reduction not in (None, "none"):
                self._divided.append(place)

        self._for_each(look, y, y_pred, sample_weight)
        self._has_added = bool(self._model.losses)
        if self.not_means:
            warnings.warn(
                f"The loss {', '.join(self.not_means)} returns one number for all samples: its "
                "micro-batches are weighted by their samples. That is exact if it is a mean over "
                "samples. Return one number per sample to leave no doubt.",
                stacklevel=2,
            )

    def masses(self, y, y_pred, sample_weight, dtype):
        """Return one scalar per loss: what it divides by in this micro-batch, 0 for samples."""
        masses = [ops.zeros((), dtype) for _ in self.losses]

        def measure(place, loss, y_true, y_pred, sample_weight):
            if place in self._places:
                masses[place] = ops.cast(_mass(loss, y_pred, sample_weight), dtype)

        self._for_each(measure, y, y_pred if self.needs_masks else self._structure, sample_weight)
        return masses

    def of(self, x, y, y_pred, sample_weight, samples, whole) -> tuple[Any, Any, list]:
        """Return the micro-batch's share of the loss, and of each compiled loss alone.

        Args:
            x: The micro-batch's inputs.
            y: Its targets.
            y_pred: The model's outputs for it.
            sample_weight: Its sample weights, or None.
            samples: Scalar; its number of samples.
            whole: The batch's `Whole`.

        Returns:
            Tuple ``(loss, logged, parts)``: the scalar to differentiate, with tasks a list of
            `rows` scalars; the scalar to report; and one scalar per compiled loss.
        """
        fraction = samples / whole.samples
        if self._is_own:
            loss = self._model._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
            loss = _undivided(loss)
            loss = loss * ops.cast(fraction, loss.dtype)
            return loss, loss, []
        parts, unlogged, shares = [], [], []

        def share(place, loss, y_true, y_pred, sample_weight):
            if place in self._places and sample_weight is not None:
                sample_weight = ops.copy(sample_weight)  # Keras masks it in place on PyTorch
            value = loss(y_true, y_pred, sample_weight)
            if place in self._divided:
                value = _undivided(value)
            if len(value.shape) > 0:
                # Without a reduction Keras differentiates the sum, and reports the mean.
                part = ops.mean(value) * ops.cast(fraction, value.dtype)
                weight = self.losses[place].loss_weights
                share = ops.sum(value)
                unlogged.append((share - part) * (1.0 if weight is None else weight))
            elif getattr(loss, "reduction", None) == "sum":
                share = part = value
            else:
                ratio = fraction
                if place in self._places:
                    mass = ops.cast(_mass(loss, y_pred, sample_weight), whole.masses[place].dtype)
                    ratio = ops.divide_no_nan(mass, whole.masses[place])
                share = part = value * ops.cast(ratio, value.dtype)
            parts.append(part)
            shares.append(share)
            return share

        terms = []
        total = self._for_each(share, y, y_pred, sample_weight)
        if total is not None:
            terms.append(total)
        added = list(self._added(x, fraction))
        terms.extend(added)
        if not terms:
            raise ValueError(
                "No loss to compute: got a model compiled without `loss` and without "
                "added losses. Give `compile` a loss."
            )
        loss = terms[0]
        for term in terms[1:]:
            loss = loss + ops.cast(term, loss.dtype)
        logged = loss
        for term in unlogged:
            logged = logged - ops.cast(term, loss.dtype)
        if self._tasks is not None:
            loss = self._rows(shares, added, loss.dtype)
        return loss, logged, parts

    def track(self, parts, rows):
        """Update the metrics Keras keeps of each of several losses."""
        for metric, part in zip(self._compile_loss.metrics if parts else (), parts, strict=False):
            metric.update_state(part, sample_weight=rows)

    def _rows(self, shares, added, dtype):
        assert self._tasks is not None
        weights = [record.loss_weights for record in self.losses]
        weighted = [
            ops.cast(share if weight is None else share * weight, dtype)
            for share, weight in zip(shares, weights, strict=True)
        ]
        zero = ops.zeros((), dtype)
        rows = [sum((weighted[i] for i in group), zero) for group in self._tasks.groups]
        return [*rows, sum((ops.cast(term, dtype) for term in added), zero)] if added else rows

    def _added(self, x, fraction):
        rows = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None).shape[0]
        for loss in self._model.losses:
            value = _undivided(self._model._aggregate_additional_loss(loss))
            per_sample = len(loss.shape) > 0 and loss.shape[0] in (None, rows)
            yield value if per_sample else value * ops.cast(fraction, value.dtype)

    def _for_each(self, function, y, y_pred, sample_weight):
        """Call ``function(place, loss, y_true, y_pred, sample_weight)`` in place of each loss.

        Keras matches losses, targets, outputs and weights; its copy here only has other losses.
        Returns the weighted sum of what `function` returned, as Keras sums losses.
        """
        if self._is_own or self._compile_loss is None:
            return None
        matched = object.__new__(type(self._compile_loss))
        matched.__dict__.update(self._compile_loss.__dict__)
        matched._flat_losses = [
            record._replace(loss=_Stand(function, place, record.loss))
            for place, record in enumerate(self._compile_loss._flat_losses)
        ]
        matched._metrics = [None] * len(matched._flat_losses)
        return matched(y, y_pred, sample_weight)


class _Stand:
    """Stands for a loss among Keras' losses."""

    def __init__(self, function, place, loss):
        self._function = function
        self._place = place
        self._loss = loss

    def __call__(self, y_true, y_pred, sample_weight=None):
        value = self._function(self._place, self._loss, y_true, y_pred, sample_weight)
        return ops.zeros((), self._loss.dtype) if value is None else value


def _undivided(value):
    # Keras divides the mean of each replica by their number, and knows one mean for all.
    divisor = replicas.loss_divisor()
    return value if divisor == 1 else value * divisor


def _is_keras_call(loss):
    return type(loss).__call__ is keras.losses.Loss.__call__


class _MaskReader(keras.layers.Layer):
    """Takes the mask that Keras hands from a tensor to the next layer."""

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        # Keras may wrap what a layer returns, and copies what a layer keeps.
        _read.append(mask)
        return inputs


_read = []
_mask_reader = functools.cache(_MaskReader)


def _mask(y_pred):
    """Return the mask that Keras keeps with an output, or None."""
    if y_pred is None or keras.tree.is_nested(y_pred):
        return None
    _mask_reader()(y_pred)
    return _read.pop()


def _mass(loss, y_pred, sample_weight):
    """Return what `loss` divides by, up to a constant factor, or None if samples say it."""
    if not _is_keras_call(loss):
        return None
    mask = _mask(y_pred)
    if mask is not None:
        mask = ops.cast(mask, loss.dtype)
    if loss.reduction in _MEANS:
        return None if mask is None else ops.sum(mask)
    if loss.reduction != "mean_with_sample_weight" or (mask is None and sample_weight is None):
        return None
    if sample_weight is None:
        return ops.sum(mask)
    weight = ops.convert_to_tensor(sample_weight, loss.dtype)
    if mask is not None:
        if len(weight.shape) == len(mask.shape) + 1:
            weight = ops.squeeze(weight, -1)
        weight = weight * mask
    return ops.sum(weight)


def _returns_scalar(loss, y_true, y_pred):
    def convert(values):
        return keras.tree.map_structure(lambda v: ops.convert_to_tensor(v, loss.dtype), values)

    return len(loss.call(convert(y_true), convert(y_pred)).shape) == 0
