"""The passes of one batch: each micro-batch's share of its loss, and what they make together."""

import warnings
from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger import backend
from tensorflow_ranger.backend import keras_internals, replicas, steps
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.distribution.carry import merged, next_seed
from tensorflow_ranger.training.forward_passes import ForwardPasses, rows_of
from tensorflow_ranger.training.metrics_of_batch import (
    joined,
    with_masks,
)


class Whole(NamedTuple):
    """What a micro-batch must know of its batch."""

    samples: Any  #: Scalar; samples in the batch.
    masses: Any  #: One scalar per loss, or None where samples say it all.
    factor: Any  #: Scalar that gradients are multiplied by when they are added, or None for 1.
    scale: Any  #: Scalar that the loss is multiplied by before its gradient, or None for 1.


class Passes(ForwardPasses):
    """The functions a training step is made of, the same on every backend.

    They read and assign Keras variables where they say so; everything else goes in and out.
    ``begin`` reads the optimizer, ``measure`` finds the masses of a micro-batch, ``add`` adds one
    micro-batch to the totals, and ``finish`` updates the model. Between them travels the carry: a
    dict of the small state that micro-batches hand on.

    Layers' own state moves once per batch (`LayerState`); seeds advance with every micro-batch.

    Replicas agree on the batch's masses before the first micro-batch (`agreed`), draw from seeds of
    their own, and add up what they have found in `finish`.

    Args:
        model: A compiled and built Keras model.
        accumulator: A `BatchBuffer`, `MomentumFold` or `TaskBuffer` of the model's optimizer and
            trainable variables.
        tasks: `Tasks` whose gradients are summed apart, or None.
        noise: `StepStatistics` that `finish` writes the noise scale's averages to, or None.
    """

    def __init__(self, model, accumulator, tasks=None, noise=None):
        super().__init__(model, tasks)
        self.noise = noise
        self.whole = Whole
        self.accumulator = accumulator

    def open(self):
        """Return the accumulator's totals of no gradient: one per weight, for each loss."""
        return [self.accumulator.open(i) for i in range(len(self.weights) * self.losses)]

    def begin(self):
        """Return the scalars of `Whole` that the optimizer knows: factor and scale."""
        one = ops.ones((), self._dtype)
        scaled = self.model.optimizer.scale_loss(one)
        return self.accumulator.factor(), None if scaled is one else scaled

    def agreed(self, samples, masses):
        """Return the batch's samples and masses, from those of this replica's part of it."""
        if replicas.count() == 1:
            return samples, masses
        samples, *sums = replicas.sum_over([samples, *(masses or ())])
        return samples, masses and sums

    def add(self, totals, carry, data, whole, part=None):
        """Add one micro-batch.

        Args:
            totals: The accumulator's totals.
            carry: The carry of the micro-batches before.
            data: Tuple ``(x, y, sample_weight)``, as Keras' train steps take it.
            whole: `Whole` of the batch.
            part: What of the micro-batch counts here, 1/n if n replicas run it, or None for all.

        Returns:
            Tuple ``(totals, carry, outputs)``; outputs are the model's outputs and their masks if
            `gathers`, else None.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        samples = self.count(x)

        def share(weights):
            with self._scope(weights, carry, rows_of(x)) as scope:
                y_pred = self.call(x)
                loss, logged, parts = self.shares.of(x, y, y_pred, sample_weight, samples, whole)
                if part is not None:
                    loss, logged, parts = keras.tree.map_structure(
                        lambda value: value * part, (loss, logged, parts)
                    )
                seeds = [scope.get_current_value(v) for v in self.seeds]
                state = self.state.read(scope)
                metrics = [scope.get_current_value(v) for v in self.metrics]
            if whole.scale is not None:
                loss = keras.tree.map_structure(lambda v: v * ops.cast(whole.scale, v.dtype), loss)
            return loss, (y_pred, logged, parts, seeds, state, metrics)

        totals, (y_pred, logged, parts, seeds, state, metrics), square = steps.add_gradients(
            share, self, totals, whole.factor
        )
        fraction = samples / whole.samples
        if not self.has_own_metrics:
            metrics = self.metrics_of_batch.added(
                carry["metrics"], metrics, y, y_pred, sample_weight, fraction
            )
        if part is not None:
            samples = samples * part
            metrics = [
                old + ops.cast((new - old) * part, old.dtype)
                for old, new in zip(carry["metrics"], metrics, strict=True)
            ]
        noise = list(carry["noise"])
        if noise:
            # Q of noise_scale.py: the gradient here is that of the mean, times samples / whole.
            squares = ops.cast(square, samples.dtype) * whole.samples / samples
            noise = [noise[0] + squares, noise[1] + (1.0 if part is None else part)]
        carry = {
            "seeds": seeds,
            "metrics": metrics,
            "state": self.state.add(carry["state"], state, carry["samples"], samples, part),
            "samples": carry["samples"] + samples,
            "loss": carry["loss"] + logged,
            "parts": [total + part for total, part in zip(carry["parts"], parts, strict=True)],
            "noise": noise,
        }
        return totals, carry, with_masks(y_pred) if self.gathers else None

    def finish(self, totals, carry, rows, data=None, outputs=()):
        """Update the model and its metrics with the batch; return the logs.

        Args:
            totals: The accumulator's totals after the last micro-batch.
            carry: The carry after the last micro-batch.
            rows: Samples of the batch as an int, or None where a graph does not know them.
            data: Tuple ``(x, y, sample_weight)`` of the batch if `gathers`.
            outputs: What `add` returned for each micro-batch if `gathers`.
        """
        totals, carry = self._over_replicas(totals, carry)
        for variable, value in zip(self.seeds, carry["seeds"], strict=True):
            variable.assign(next_seed(variable.value, value))
        for variable, value in zip(self.metrics, carry["metrics"], strict=True):
            variable.assign(value)
        self.state.assign(carry["state"], carry["samples"])
        rows = rows if replicas.count() == 1 or rows is None else carry["counted"]
        self._track(carry["loss"], carry["parts"], carry["counted"], rows)
        x, y, sample_weight = data or (None, None, None)
        y_pred = joined(outputs) if outputs else None
        if outputs and not self.has_own_metrics:
            self.metrics_of_batch.update(y, y_pred, sample_weight)
        totals = [t if has else None for t, has in zip(totals, self.has_gradient, strict=True)]
        if self.noise is not None:
            self._observe_noise(totals, carry)
        if self.weights:
            self.accumulator.close(totals)
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        if self.has_own_metrics:
            return self.model.compute_metrics(x, y, y_pred, sample_weight)
        return self.model.get_metrics_result()

    def _track(self, loss, parts, samples, rows):
        keras_internals.track_loss(self.model, loss, samples)
        self.shares.track(parts, rows)

    def _over_replicas(self, totals, carry):
        if replicas.count() == 1:
            return totals, carry | {"counted": carry["samples"]}
        totals, present = steps.filled(totals, self.accumulator.open, carry["samples"])
        totals, carry = merged(
            totals,
            carry | {"present": present},
            [v.value for v in self.metrics],
            self.state.before(carry["state"]),
        )
        if present:
            self.has_gradient = [bool(count) for count in carry["present"][0]]
        return totals, carry

    def _observe_noise(self, totals, carry):
        assert self.noise is not None
        _, scale = self.begin()
        unscaled = 1.0 if scale is None else 1.0 / ops.cast(scale, "float32") ** 2
        squares, micro_batches = carry["noise"]
        window_square = backend.squared_norm([total for total in totals if total is not None])
        self.noise.values.assign(
            noise_scale.updated(
                self.noise.values.value,
                ops.cast(squares, "float32") * unscaled,
                window_square * unscaled,
                micro_batches,
                carry["samples"],
                self.noise.memory,
            )
        )
