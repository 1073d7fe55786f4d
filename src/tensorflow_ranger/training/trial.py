"""A batch run as a trial: its gradients, losses and seeds, and no change of the model."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from tensorflow_ranger import backend
from tensorflow_ranger.accumulation.fused import BatchBuffer
from tensorflow_ranger.backend import steps
from tensorflow_ranger.backend.steps.samples import count
from tensorflow_ranger.training.loss_shares import LossShares
from tensorflow_ranger.training.passes import Passes


class Trial(Passes):
    """The passes of a batch that end in a record of it, and assign nothing.

    Args:
        model: A compiled and built Keras model.
        is_whole: Whether the batch is one micro-batch, with the loss that Keras computes.
        training: What the model is called with.
    """

    def __init__(self, model, is_whole, training):
        super().__init__(model, _Recorder(model.optimizer, model.trainable_variables))
        self._training = training
        if is_whole:
            self.shares = _KerasLoss(model)

    def finish(self, totals, carry, rows):
        """Return the record of the batch."""
        return {
            "totals": totals,
            "seeds": carry["seeds"],
            "loss": carry["loss"],
            "parts": carry["parts"],
        }

    def assigned(self):
        """Return the variables of floats that layers assigned, seeds apart."""
        return [v for v in self._averaged if keras.backend.is_float_dtype(v.dtype)]

    def call(self, x):
        """Return the model's outputs."""
        if self.model._call_has_training_arg:
            return self.model(x, training=self._training)
        return self.model(x)

    def _update_metrics(self, x, y, y_pred, sample_weight, track):
        return {}


class _Recorder(BatchBuffer):
    """Holds of each variable the sum of the gradients, and the sum of their magnitudes."""

    def open(self, index):
        zeros = super().open(index)
        return ops.stack([zeros, zeros])

    def first(self, index, gradient, factor):
        return self.add(index, self.open(index), gradient, factor)

    def add(self, index, total, gradient, factor):
        gradient = super().add(index, super().open(index), gradient, factor)
        both = ops.stack([gradient, ops.abs(gradient)])
        return ops.maximum(total, both) if self._overwritten[index] else total + both


class _KerasLoss(LossShares):
    """The loss as `fit` without `microbatch` computes it: what the shares are to add up to."""

    def of(self, x, y, y_pred, sample_weight, samples, whole):
        # Keras on torch multiplies the sample weights by the mask in place.
        copy = _copy(sample_weight)
        _, logged, parts = super().of(x, y, y_pred, copy, samples, whole)
        loss = self._model._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )
        return ops.sum(loss), logged, parts


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run of the batch left, as NumPy arrays.

    Args:
        trial: The passes that ran.
        totals: For each trainable variable the two sums of `_Recorder`.
        seeds: The seeds' values after the batch.
        loss: The batch's loss.
        parts: The compiled losses' shares of it.
    """

    trial: Trial
    totals: list
    seeds: list
    loss: float
    parts: list


def run_both(model, data, size, training):
    """Return the `Record` of the batch as a whole, and that of its micro-batches."""
    return (
        _run(Trial(model, True, training), data, count(data)),
        _run(Trial(model, False, training), data, size),
    )


def _run(trial, data, size):
    model, state, compiled = trial.model, None, None
    if keras.config.backend() == "jax":
        # The step is given its arrays for good. Of the optimizer it needs none.
        groups = (model.trainable_variables, model.non_trainable_variables, (), trial.metrics)
        state = tuple([ops.copy(v.value) for v in group] for group in groups)
        compiled = bool(model.jit_compile and not model.run_eagerly)
    with backend.kept(model):
        logs, _ = steps.make_step(trial, "host", compiled).run(state, _copy(data), size, None)
    totals = [
        # PyTorch has no gradient for what the loss doesn't depend on.
        np.zeros((2, *weight.shape)) if total is None else ops.convert_to_numpy(total)
        for weight, total in zip(trial.weights, logs["totals"], strict=True)
    ]
    return Record(
        trial,
        [total.astype("float64") for total in totals],
        [ops.convert_to_numpy(seed) for seed in logs["seeds"]],
        float(ops.convert_to_numpy(logs["loss"])),
        [float(ops.convert_to_numpy(part)) for part in logs["parts"]],
    )


def differences_of(whole, parts, tolerance):
    """Return the largest relative difference of each variable, by its path."""
    scales = [
        max(largest(one[1]), largest(other[1]))
        for one, other in zip(whole.totals, parts.totals, strict=True)
    ]
    floor = min(1.0, 32 * tolerance) * max(filter(math.isfinite, scales), default=0.0)
    differences = {}
    for weight, scale, one, other in zip(
        whole.trial.weights, scales, whole.totals, parts.totals, strict=True
    ):
        with np.errstate(invalid="ignore"):  # inf - inf
            difference = largest(one[0] - other[0])
        relative = difference and difference / max(scale, floor)
        # Layers of one name share a path.
        differences[weight.path] = float(np.maximum(differences.get(weight.path, 0.0), relative))
    return differences


def largest(array):
    """Return the largest magnitude in a NumPy array."""
    return float(np.max(np.abs(array), initial=0.0))


def is_over(differences, tolerance):
    """Return whether a difference is larger than rounding explains; a NaN is."""
    return not all(difference <= tolerance for difference in differences.values())


def _copy(data):
    return keras.tree.map_structure(lambda leaf: None if leaf is None else ops.copy(leaf), data)
