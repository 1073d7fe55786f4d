"""The passes of one batch: each micro-batch's share of its loss, and what they make together."""

import contextlib
import warnings
from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger import backend
from tensorflow_ranger.accumulation.accumulators import accumulator_dtype
from tensorflow_ranger.backend import replicas, steps
from tensorflow_ranger.backend.steps.samples import count, cut, first
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.distribution.carry import merged, next_seed, own_seed
from tensorflow_ranger.training.call_scope import CallScope
from tensorflow_ranger.training.examination import Examination
from tensorflow_ranger.training.layer_state import CARRIED, LayerState
from tensorflow_ranger.training.loss_shares import LossShares
from tensorflow_ranger.training.metrics_of_batch import (
    MetricsOfBatch,
    joined,
    masked,
    with_masks,
)
from tensorflow_ranger.training.probe import Look, Looks


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
        self.state = LayerState(model, self.seeds)
        self._dtype = accumulator_dtype(keras.config.floatx())
        self.has_own_metrics = type(model).compute_metrics is not keras.Model.compute_metrics
        self.metrics_of_batch = MetricsOfBatch(model)
        self.unknown = []

    @property
    def gathers(self):
        """Whether `finish` needs the batch's outputs."""
        return self.has_own_metrics or self.metrics_of_batch.gathers

    def prepare(self, data, samples):
        """Learn from a micro-batch, without training on it, which state and masks there are.

        Args:
            data: Tuple ``(x, y, sample_weight)`` of the micro-batch.
            samples: Samples of the batch, or None where a graph does not know them.
        """
        try:
            scope, y_pred = self._first_call(data)
        except Exception as error:
            if steps.is_out_of_memory(error) or not self.state.guess_rows(samples):
                raise
            scope, y_pred = self._first_call(data)
        self.has_gradient = [True] * (len(self.weights) * self.losses)
        self.state.find(scope.assigned, samples)
        self.metrics_of_batch.find(y_pred, samples)

    def _first_call(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self._scope(rows=_rows(x)) as scope:
            y_pred = self.call(x)
            self.shares.inspect(y, y_pred, sample_weight)
        return scope, y_pred

    def examine(self, run, data, size):
        """Find out what `prepare` left open.

        Args:
            run: Function that calls `probe` on samples and returns its `Looks` as arrays.
            data: Tuple ``(x, y, sample_weight)`` of the batch.
            size: Samples per micro-batch.
        """
        if self.state.unclear or self.shares.questions or self.metrics_of_batch.unclear:
            examination = Examination(self.state, self.shares, self.metrics_of_batch)
            self.unknown = examination.run(run, data, size)
        self.state.find_normalizations()

    def probe(self, data):
        """Return the `Looks` at some samples, whole and in two halves. Nothing is assigned."""
        half = count(data) // 2
        first, second = cut(data, 0, half), cut(data, half, count(data) - half)
        carry = self.carry()
        begun = Look(carry["state"].values, [], carry["metrics"], carry["seeds"])
        whole, y_pred = self._look(data, carry)
        one, _ = self._look(first, carry, cut(y_pred, 0, half))
        rest = cut(y_pred, half, count(data) - half)
        later = carry | {"samples": ops.cast(half, self._dtype)}
        state = self.state.continued(carry["state"], one.state)
        gone_on = later | {"metrics": one.metrics, "state": state}
        return Looks(
            begun,
            whole,
            one,
            self._look(second, later, rest)[0],
            self._look(second, gone_on, rest, carried=(CARRIED, None))[0],
        )

    def _look(self, data, carry, given=None, carried=(CARRIED,)):
        """Return a `Look`, and the outputs with their masks.

        Args:
            data: Tuple ``(x, y, sample_weight)`` of some samples.
            carry: What they begin with.
            given: Outputs and masks of these samples when more ran with them: losses and metrics
                are compared at the same outputs, whatever layers draw.
            carried: Kinds of layers' state that go on from the samples before.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self._scope(None, carry, _rows(x), carried) as scope:
            y_pred = self.call(x)
            outputs = with_masks(y_pred)
            if given is not None and not (self.shares.is_own and self.model.losses):
                y_pred = masked(*given)
            answers = self.shares.answers(x, y, y_pred, copies(sample_weight))
            state = self.state.read(scope)
        seeds = [scope.get_current_value(v) for v in self.seeds]
        metrics = self.metrics_of_batch.updated(carry["metrics"], y, y_pred, copies(sample_weight))
        return Look(state, answers, metrics, seeds), outputs

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
        return ops.cast(_rows(data), self._dtype)

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
        with self._scope(rows=_rows(x)):
            y_pred = self.call(x) if self.shares.needs_outputs else None
            return self.shares.masses(y, y_pred, sample_weight, self._dtype)

    def carry(self):
        """Return the carry that a batch begins with."""
        zero = ops.zeros((), self._dtype)
        return {
            "seeds": [own_seed(v.value) for v in self.seeds],
            "metrics": [v.value for v in self.metrics],
            "state": self.state.open(),
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
            Tuple ``(totals, carry, outputs)``; outputs are the model's outputs and their masks if
            `gathers`, else None.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        samples = self.count(x)

        def share(weights):
            with self._scope(weights, carry, _rows(x)) as scope:
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
            "state": self.state.add(carry["state"], state, carry["samples"], samples),
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

    def call(self, x):
        """Return the model's outputs in training."""
        if self.model._call_has_training_arg:
            return self.model(x, training=True)
        return self.model(x)

    def _track(self, loss, parts, samples, rows):
        self.model._loss_tracker.update_state(loss, sample_weight=samples)
        self.shares.track(parts, rows)

    @contextlib.contextmanager
    def _scope(self, weights=None, carry=None, rows=None, carried=(CARRIED,)):
        """Give the scope of a forward pass that begins with what `carry` says.

        Args:
            weights: Values of the trained weights, or None for their own.
            carry: The carry of the micro-batches before, or None at the batch's beginning.
            rows: Samples of the micro-batch.
            carried: Kinds of layers' state that go on from the micro-batch before.
        """
        totals, start = (None, 0) if carry is None else (carry["state"], carry["samples"])
        pairs = steps.current_values([*self.weights, *self.model.non_trainable_variables])
        # Keras looks for a regularized weight nowhere but in the scope.
        pairs += ((w, w.value) for w in self.weights if w.regularizer is not None)
        if weights is not None:
            pairs += zip(self.weights, weights, strict=True)
        if carry is not None:
            pairs += zip(self.seeds, carry["seeds"], strict=True)
            pairs += zip(self.metrics, carry["metrics"], strict=True)
        with self.state.placed(totals, start, rows, carried) as placed:
            mapping = {id(variable): (variable, value) for variable, value in [*pairs, *placed]}
            reassigned = self.weights if backend.KEEPS_ALL_ASSIGNMENTS else ()
            with CallScope(mapping.values(), reassigned) as scope:
                yield scope

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


def copies(data):
    """Return copies of nested arrays: Keras on PyTorch multiplies weights by masks in place."""
    return keras.tree.map_structure(lambda leaf: None if leaf is None else ops.copy(leaf), data)


def _rows(x):
    leaf = first(x)
    return ops.shape(leaf)[0] if leaf.shape[0] is None else leaf.shape[0]
