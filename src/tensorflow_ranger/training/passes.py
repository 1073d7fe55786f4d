"""The passes of one batch: each micro-batch's share of its loss, and what they make together."""

import warnings
from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger import backend
from tensorflow_ranger.accumulation.accumulators import accumulator_dtype
from tensorflow_ranger.backend import replicas, steps
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.distribution.carry import merged, next_seed, own_seed
from tensorflow_ranger.training.loss_shares import LossShares


class Whole(NamedTuple):
    """What a micro-batch must know of its batch."""

    samples: Any  #: Scalar; samples in the batch.
    masses: Any  #: One scalar per loss, or None where samples say it all.
    factor: Any  #: Scalar that gradients are multiplied by when they are added, or None for 1.
    scale: Any  #: Scalar that the loss is multiplied by before its gradient, or None for 1.


class Passes:
    """The functions a training step is made of, the same on every backend.

    They read and assign Keras variables where they say so; everything else goes in and out.
    ``begin`` reads the optimizer, ``measure`` finds the masses of a micro-batch, ``add`` adds one
    micro-batch to the totals, and ``finish`` updates the model. Between them travels the carry: a
    dict of the small state that micro-batches hand on.

    Layers' own state moves once per batch: each micro-batch begins with what the batch began with,
    and the batch ends with the mean of what they made of it, weighted by samples. For the moving
    variance of `BatchNormalization` the spread between the micro-batches' means is added (law of
    total variance). Seeds advance with every micro-batch.

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
        self.model = model
        self.noise = noise
        self.whole = Whole
        self.accumulator = accumulator
        self.weights = list(model.trainable_variables)
        self.metrics = list(model.metrics_variables)
        kept = {id(weight) for weight in model.non_trainable_weights}
        self.seeds = [v for v in model.non_trainable_variables if id(v) not in kept]
        self.shares = LossShares(model, tasks)
        self.has_gradient = []
        self._averaged = []
        self._normalizations = {}
        self._dtype = accumulator_dtype(keras.config.floatx())
        self.has_own_metrics = type(model).compute_metrics is not keras.Model.compute_metrics

    def prepare(self, data):
        """Learn from a micro-batch, without training on it, which state and masks there are."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        scope = self._scope()
        before = dict(scope.state_mapping)
        with scope:
            y_pred = self.call(x)
            self.shares.inspect(y, y_pred, sample_weight)
        self.has_gradient = [True] * (len(self.weights) * self.losses)
        assigned = [
            v
            for v in self.model.non_trainable_weights
            if scope.get_current_value(v) is not before.get(id(v))
        ]
        self._averaged = assigned
        places = {id(variable): i for i, variable in enumerate(assigned)}
        self._normalizations = {
            places[id(layer.moving_variance)]: (places[id(layer.moving_mean)], layer.momentum)
            for layer in self.model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
            and id(getattr(layer, "moving_variance", None)) in places
            and layer.momentum < 1
        }

    @property
    def losses(self):
        """How many losses are differentiated."""
        return self.shares.rows

    @property
    def needs_masses(self):
        """Whether a loss is divided by something else than its number of samples."""
        return self.shares.needs_masses

    def count(self, data):
        """Return the number of samples in `data` as a scalar."""
        first = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)
        return ops.cast(ops.shape(first)[0], self._dtype)

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

    def measure(self, data):
        """Return the masses of a micro-batch, one scalar per loss."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self._scope():
            y_pred = self.call(x) if self.shares.needs_masks else None
            return self.shares.masses(y, y_pred, sample_weight, self._dtype)

    def carry(self):
        """Return the carry that a batch begins with."""
        zero = ops.zeros((), self._dtype)
        return {
            "seeds": [own_seed(v.value) for v in self.seeds],
            "metrics": [v.value for v in self.metrics],
            "averages": [v.value for v in self._averaged],
            "spreads": [ops.zeros_like(self._averaged[i].value) for i in self._normalizations],
            "samples": zero,
            "loss": ops.zeros((), keras.config.floatx()),
            "parts": [ops.zeros((), loss.loss.dtype) for loss in self.shares.losses],
            "noise": [] if self.noise is None else [zero, zero],
        }

    def add(self, totals, carry, data, whole, part=None):
        """Add one micro-batch.

        Args:
            totals: The accumulator's totals.
            carry: The carry of the micro-batches before.
            data: Tuple ``(x, y, sample_weight)``, as Keras' train steps take it.
            whole: `Whole` of the batch.
            part: What of the micro-batch counts here, 1/n if n replicas run it, or None for all.

        Returns:
            Tuple ``(totals, carry, logs)``; logs is what a model's own `compute_metrics` returned,
            which is called for each micro-batch.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        samples = self.count(x)

        def share(weights):
            with self._scope(weights, carry) as scope:
                y_pred = self.call(x)
                loss, logged, parts = self.shares.of(x, y, y_pred, sample_weight, samples, whole)
                if part is not None:
                    loss, logged, parts = keras.tree.map_structure(
                        lambda value: value * part, (loss, logged, parts)
                    )
                values = [scope.get_current_value(v) for v in [*self.seeds, *self._averaged]]
                metrics = [scope.get_current_value(v) for v in self.metrics]
            if whole.scale is not None:
                loss = keras.tree.map_structure(lambda v: v * ops.cast(whole.scale, v.dtype), loss)
            return loss, (y_pred, logged, parts, values, metrics)

        totals, (y_pred, logged, parts, values, metrics), square = steps.add_gradients(
            share, self, totals, whole.factor
        )
        with self._scope(None, carry | {"metrics": metrics}) as scope:

            def track():
                times = whole.samples / samples
                own = [value * ops.cast(times, value.dtype) for value in (logged, *parts)]
                self._track(own[0], own[1:], samples, samples)

            logs = self._update_metrics(x, y, y_pred, sample_weight, track)
            metrics = [scope.get_current_value(v) for v in self.metrics]
        if part is not None:
            samples = samples * part
            metrics = [
                old + ops.cast((new - old) * part, old.dtype)
                for old, new in zip(carry["metrics"], metrics, strict=True)
            ]
        seeds, averages = values[: len(self.seeds)], values[len(self.seeds) :]
        averages, spreads = self._mean_state(carry, averages, samples)
        noise = list(carry["noise"])
        if noise:
            # Q of noise_scale.py: the gradient here is that of the mean, times samples / whole.
            squares = ops.cast(square, samples.dtype) * whole.samples / samples
            noise = [noise[0] + squares, noise[1] + (1.0 if part is None else part)]
        carry = {
            "seeds": seeds,
            "metrics": metrics,
            "averages": averages,
            "spreads": spreads,
            "samples": carry["samples"] + samples,
            "loss": carry["loss"] + logged,
            "parts": [total + part for total, part in zip(carry["parts"], parts, strict=True)],
            "noise": noise,
        }
        return totals, carry, logs

    def finish(self, totals, carry, rows):
        """Update the model and its metrics with the batch; return the logs, if `add` does not.

        Args:
            totals: The accumulator's totals after the last micro-batch.
            carry: The carry after the last micro-batch.
            rows: Samples of the batch as an int, or None where a graph does not know them.
        """
        totals, carry = self._over_replicas(totals, carry)
        for variable, value in zip(self.seeds, carry["seeds"], strict=True):
            variable.assign(next_seed(variable.value, value))
        for variable, value in zip(self.metrics, carry["metrics"], strict=True):
            variable.assign(value)
        for variable, value in zip(self._averaged, self._final_state(carry), strict=True):
            variable.assign(value)
        if not self.has_own_metrics:
            rows = rows if replicas.count() == 1 or rows is None else carry["counted"]
            self._track(carry["loss"], carry["parts"], carry["counted"], rows)
        totals = [t if has else None for t, has in zip(totals, self.has_gradient, strict=True)]
        if self.noise is not None:
            self._observe_noise(totals, carry)
        if self.weights:
            self.accumulator.close(totals)
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        return {} if self.has_own_metrics else self.model.get_metrics_result()

    def call(self, x):
        """Return the model's outputs in training."""
        if self.model._call_has_training_arg:
            return self.model(x, training=True)
        return self.model(x)

    def _update_metrics(self, x, y, y_pred, sample_weight, track):
        if self.has_own_metrics:
            track()  # Keras' own metric of the loss, which they may look at
            return self.model.compute_metrics(x, y, y_pred, sample_weight)
        if self.model._compile_metrics is not None:
            self.model._compile_metrics.update_state(y, y_pred, sample_weight)
        return {}

    def _track(self, loss, parts, samples, rows):
        self.model._loss_tracker.update_state(loss, sample_weight=samples)
        self.shares.track(parts, rows)

    def _scope(self, weights=None, carry=None):
        mapping = steps.current_values([*self.weights, *self.model.non_trainable_variables])
        mapping += ((variable, variable.value) for variable in self._averaged)
        # Keras looks for a regularized weight nowhere but in the scope.
        mapping += ((w, w.value) for w in self.weights if w.regularizer is not None)
        if weights is not None:
            mapping += zip(self.weights, weights, strict=True)
        if carry is not None:
            mapping += zip(self.seeds, carry["seeds"], strict=True)
            mapping += zip(self.metrics, carry["metrics"], strict=True)
        return keras.StatelessScope(mapping, collect_losses=True)

    def _over_replicas(self, totals, carry):
        if replicas.count() == 1:
            return totals, carry | {"counted": carry["samples"]}
        totals, present = steps.filled(totals, self.accumulator.open, carry["samples"])
        totals, carry = merged(
            totals,
            carry | {"present": present},
            [v.value for v in self.metrics],
            [v.value for v in self._averaged],
            [mean for mean, _ in self._normalizations.values()],
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

    def _mean_state(self, carry, values, samples):
        # Welford's running mean and sum of squares, with samples as weights.
        share = samples / (carry["samples"] + samples)
        means, spreads = [], list(carry["spreads"])
        for old, new in zip(carry["averages"], values, strict=True):
            if keras.backend.is_float_dtype(old.dtype):
                means.append(old + (new - old) * ops.cast(share, old.dtype))
            else:
                means.append(new)
        for place, (mean, _) in enumerate(self._normalizations.values()):
            old, new = carry["averages"][mean], values[mean]
            has_mean = ops.cast(carry["samples"] > 0, old.dtype)
            weight = has_mean * ops.cast(samples, old.dtype)
            spreads[place] = spreads[place] + weight * (new - old) * (new - means[mean])
        return means, spreads

    def _final_state(self, carry):
        values = list(carry["averages"])
        # A moving mean has moved by 1 - momentum of what the batch's mean is away.
        for spread, (variance, (_, momentum)) in zip(
            carry["spreads"], self._normalizations.items(), strict=True
        ):
            between = spread / ops.cast(carry["samples"], spread.dtype)
            values[variance] = values[variance] + between / (1.0 - momentum)
        return values
