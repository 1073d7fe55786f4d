"""A batch run without training on it: what it would have added up, and no change of the model."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.accumulation.batch_buffer import BatchBuffer
from tensorflow_ranger.backend import arrays, keras_internals, replicas, steps
from tensorflow_ranger.backend.batches import count, split
from tensorflow_ranger.backend.phases import BatchTotals
from tensorflow_ranger.training.batch_step import BatchStep
from tensorflow_ranger.training.compiled_losses import CompiledLosses, copies
from tensorflow_ranger.training.metrics_of_batch import masked, with_masks


class DryRun(BatchStep):
    """The passes of a batch that end in a record of it, and assign nothing.

    Args:
        model: A compiled and built Keras model.
        is_whole: Whether the batch is one micro-batch, with the loss that Keras computes.
        training: What the model is called with.
        loss: "shares", "whole", or None to decide.
        padding: `Padding` that cuts the batch, or None.
    """

    is_alone = True

    def __init__(self, model, is_whole, training, loss=None, padding=None):
        recorder = _Recorder(model.optimizer, model.trainable_variables)
        super().__init__(model, recorder, loss=loss, padding=padding)
        self._training = training
        self._is_whole = is_whole
        if is_whole:
            self.compiled_losses = _KerasLoss(model)

    def examine(self, run, data, size):
        """Find out what `prepare` left open; of a whole batch nothing is."""
        if not self._is_whole:
            super().examine(run, data, size)

    def initial(self):
        """Return the `LoopState` that a batch begins with."""
        state = super().initial()
        if not replicas.has_several(self.weights):
            return state
        # On TensorFlow replicas meet, those of other processes as well, when metrics are read.
        zeros = [ops.zeros(v.shape, v.dtype) for v in self.metrics]
        return state._replace(metrics=zeros)

    def finish(self, sums, state, rows, data=None, outputs=()):
        """Return the record of the batch."""
        return {
            "totals": sums,
            "seeds": state.seeds,
            "state": self.state.final(state.layers, state.samples),
            "loss": state.loss,
            "parts": state.losses,
            "metrics": state.metrics,
        }

    @property
    def gathers(self):
        """Whether `finish` needs the batch's outputs: it looks at no metric."""
        return False

    @property
    def loss_names(self):
        """How to name to the user each loss that `gradients_by_outputs` differentiates."""
        if self.compiled_losses.is_own:
            return [f"{type(self.model).__name__}.compute_loss"]
        return [
            f"The loss {self.compiled_losses.name(i)}"
            for i in range(len(self.compiled_losses.losses))
        ]

    def gradients_by_outputs(self, data, size):
        """Return for each loss its gradients by the model's outputs, as NumPy arrays.

        Args:
            data: Tuple ``(x, y, sample_weight)`` of the batch.
            size: Samples of the micro-batches in which the losses are computed.
        """
        with arrays.kept(self.model):
            with self._scope(rows=count(data)):
                y_pred = self.call(data[0])
            outputs, masks = with_masks(y_pred)
            leaves = keras.tree.flatten(outputs)
            places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
            own = arrays.gradients_of(
                lambda values: self._losses_of(
                    outputs, masks, dict(zip(places, values, strict=True)), data, size
                ),
                [leaves[i] for i in places],
                len(self.loss_names),
            )
        return [[np.asarray(ops.convert_to_numpy(g), "float64") for g in each] for each in own]

    def _losses_of(self, outputs, masks, values, data, size):
        leaves = [values.get(i, leaf) for i, leaf in enumerate(keras.tree.flatten(outputs))]
        batch = (*data, keras.tree.pack_sequence_as(outputs, leaves), masks)
        samples = ops.cast(count(data), self._dtype)
        masses, sums = None, 0.0
        if self.needs_masses:
            measured = [
                self.compiled_losses.masses(y, masked(y_pred, own), weight, self._dtype)
                for _, y, weight, y_pred, own in split(batch, size)
            ]
            masses = [sum(each) for each in zip(*measured, strict=True)]
        whole = BatchTotals(samples, masses, None, None)
        sums = [0.0] * len(self.loss_names)
        with self._scope(rows=count(data)):
            for x, y, weight, y_pred, own in split(batch, size):
                y_pred = masked(y_pred, own)
                weight = copies(weight)
                loss, _, parts = self.compiled_losses.of(x, y, y_pred, weight, self.count(x), whole)
                sums = [a + ops.sum(b) for a, b in zip(sums, parts or [loss], strict=True)]
        return sums

    def assigned(self):
        """Return the variables of floats that layers assigned, seeds apart."""
        return [v for v in self.state.variables if keras.backend.is_float_dtype(v.dtype)]

    def call(self, x):
        """Return the model's outputs."""
        if keras_internals.takes_training(self.model):
            return self.model(x, training=self._training)
        return self.model(x)


class _Recorder(BatchBuffer):
    """Holds of each variable the sum of the gradients, and the sum of their magnitudes."""

    takes_rows = False  # the magnitude of a row that was looked up twice is that of its sum

    def open(self, index):
        zeros = super().open(index)
        return ops.stack([zeros, zeros])

    def first(self, index, gradient, factor):
        return self.add(index, self.open(index), gradient, factor)

    def add(self, index, total, gradient, factor):
        gradient = super().add(index, super().open(index), gradient, factor)
        both = ops.stack([gradient, ops.abs(gradient)])
        return ops.maximum(total, both) if self._overwritten[index] else total + both


class _KerasLoss(CompiledLosses):
    """The loss as `fit` without `microbatch` computes it: what the shares are to add up to."""

    def of(self, x, y, y_pred, sample_weight, samples, whole):
        # Keras on torch multiplies the sample weights by the mask in place.
        _, logged, parts = super().of(x, y, y_pred, copies(sample_weight), samples, whole)
        loss = keras_internals.computed_loss(self.model, x, y, y_pred, copies(sample_weight))
        return ops.sum(ops.convert_to_tensor(loss)), logged, parts


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run of the batch left, as NumPy arrays.

    Args:
        dry_run: The phases that ran.
        totals: For each trainable variable the two sums of `_Recorder`.
        seeds: The seeds' values after the batch.
        state: The layers' state after the batch, by path.
        loss: The batch's loss.
        parts: The compiled losses' shares of it.
        metrics: The values of the metrics' variables after the batch.
    """

    dry_run: DryRun
    totals: list
    seeds: list
    state: dict
    loss: float
    parts: list
    metrics: list


def run_both(model, data, size, training, loss=None, padding=None):
    """Return the `Record` of the batch as a whole, and that of its micro-batches.

    Args:
        model: A compiled and built Keras model.
        data: Tuple ``(x, y, sample_weight)``.
        size: Samples per micro-batch.
        training: What the model is called with.
        loss: "shares", "whole", or None to decide.
        padding: `Padding` that cuts the batch into micro-batches, or None.
    """
    return (
        run(DryRun(model, True, training, loss), data, count(data)),
        run(DryRun(model, False, training, loss, padding), data, size),
    )


def run(dry_run, data, size):
    """Return the `Record` of the batch ``(x, y, sample_weight)``, `size` samples at a time."""
    model, compiled = dry_run.model, None
    state = steps.state_of_one(model, dry_run.metrics)
    if keras.config.backend() == "jax":
        compiled = bool(model.jit_compile and not model.run_eagerly)
    with arrays.kept(model):
        logs, _ = steps.make_step(dry_run, "host", compiled).run(state, copies(data), size, None)
    totals = [
        # PyTorch has no gradient for what the loss doesn't depend on.
        np.zeros((2, *weight.shape)) if total is None else ops.convert_to_numpy(total)
        for weight, total in zip(dry_run.weights, logs["totals"], strict=True)
    ]
    return Record(
        dry_run,
        [total.astype("float64") for total in totals],
        [ops.convert_to_numpy(arrays.copied(seed)) for seed in logs["seeds"]],
        {dry_run.state.name(place): _numbers(value) for place, value in enumerate(logs["state"])},
        float(ops.convert_to_numpy(logs["loss"])),
        [float(ops.convert_to_numpy(part)) for part in logs["parts"]],
        [_numbers(value) for value in logs["metrics"]],
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
        whole.dry_run.weights, scales, whole.totals, parts.totals, strict=True
    ):
        with np.errstate(invalid="ignore"):  # inf - inf
            difference = largest(one[0] - other[0])
        relative = difference and difference / max(scale, floor)
        # Layers of one name share a path.
        differences[weight.path] = float(np.maximum(differences.get(weight.path, 0.0), relative))
    return differences


def state_differences_of(whole, parts, tolerance):
    """Return how far apart the state that layers assign ends, relative to how far it moved."""
    differences = {}
    before = {
        whole.dry_run.state.name(place): _numbers(v.value)
        for place, v in enumerate(whole.dry_run.state.variables)
    }
    for name, value in whole.state.items():
        with np.errstate(invalid="ignore"):
            difference = largest(value - parts.state[name])
        scale = max(
            largest(value - before[name]),
            largest(parts.state[name] - before[name]),
            min(1.0, 32 * tolerance) * largest(value),
        )
        differences[name] = float(difference and difference / scale)
    return differences


def largest(array):
    """Return the largest magnitude in a NumPy array."""
    return float(np.max(np.abs(array), initial=0.0))


def is_over(differences, tolerance):
    """Return whether a difference is larger than rounding explains; a NaN is."""
    return not all(difference <= tolerance for difference in differences.values())


def _numbers(value):
    # TensorFlow's replicas have variables of their own: a copy is an array.
    return np.asarray(ops.convert_to_numpy(arrays.copied(value)), "float64")


def _is_float(tensor):
    return keras.backend.is_float_dtype(tensor.dtype)
