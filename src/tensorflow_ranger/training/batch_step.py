"""The phases of one batch: each micro-batch's part of its loss, and what they make together."""

import contextlib
import warnings

import keras
from keras import ops

from tensorflow_ranger.backend import (
    added_gradients,
    arrays,
    draws,
    keras_internals,
    replicas,
    steps,
)
from tensorflow_ranger.backend.batches import rows_of
from tensorflow_ranger.backend.phases import LoopState
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.distribution.batch_state import first_places, merged
from tensorflow_ranger.training.compiled_losses import copies
from tensorflow_ranger.training.metrics_of_batch import (
    joined,
    with_masks,
)
from tensorflow_ranger.training.two_passes import TwoPasses


class BatchStep(TwoPasses):
    """The functions a training step is made of, the same on every backend.

    They read and assign Keras variables where they say so; everything else goes in and out.
    ``begin`` reads the optimizer, ``measure`` finds the masses of a micro-batch, ``add`` adds one
    micro-batch to the sums of gradients, and ``finish`` updates the model. Between them travels the
    `LoopState`: the small state that micro-batches hand on.

    Layers' own state moves once per batch (`LayerState`); seeds advance once, as in a pass
    over the whole batch: each micro-batch draws the numbers of its own samples (`PlacedDraws`).

    Replicas agree on the batch's masses and on the places of their samples before the first
    micro-batch (`agreed`), and add up what they have found in `finish`.

    Args:
        model: A compiled and built Keras model.
        accumulator: A `BatchBuffer`, `MomentumFold` or `TaskBuffer` of the model's optimizer and
            trainable variables.
        tasks: `Tasks` whose gradients are summed apart, or None.
        noise: `StepStatistics` that `finish` writes the noise scale's averages to, or None.
        loss: "shares", "whole", or None to decide: see `microbatch`.
        padding: `Padding` that cuts the batches, or None.
        rematerialization: `Rematerialization` of the model, or None.
        norms: `UpdateNorms` or `NormGauge` that `finish` lets measure gradients, and logs, or None.
        head: `ChunkedHead` of the model, or None.
    """

    is_alone = False  #: Whether one replica runs the batch, though several may train the model.

    def __init__(
        self,
        model,
        accumulator,
        tasks=None,
        noise=None,
        loss=None,
        padding=None,
        rematerialization=None,
        norms=None,
        head=None,
    ):
        super().__init__(model, accumulator, tasks, loss, padding, rematerialization, head)
        self.noise = noise
        self.norms = norms

    @property
    def measures_gradients(self):
        """Whether `add` needs the squared norm of each micro-batch's gradient."""
        return self.noise is not None or self.norms is not None

    def examine(self, run, data, size):
        """Find out what `prepare` left open, and what a loss of the whole batch asks for.

        Raises:
            ValueError: The noise of such a loss is to be measured.
        """
        super().examine(run, data, size)
        if self.padding is not None and self.noise is not None:
            raise ValueError(
                "NoiseScale needs micro-batches of samples that were drawn at random, and padding= "
                "sorts them by length. Leave one of them out."
            )
        of_batch = self.gathers or self.metrics_of_batch.are_of_batch
        if self.padding is not None and self.padding.has_long_outputs and of_batch:
            raise ValueError(
                f"padding={self.padding.value!r} trims outputs, and a metric of this model is a "
                "function of the whole batch's, padding included. Compile metrics that add up over "
                "samples, as Keras' own do, or call microbatch without padding=."
            )
        if not self.cuts:
            return
        if self.noise is not None:
            raise ValueError(
                "NoiseScale compares the gradients of micro-batches with that of the batch, and "
                f"with a loss of the whole batch ({self.compiled_losses.whole_reason}) they are no "
                "estimates of it. Leave the callback out."
            )
        if steps.ADDS_IN_PLACE:
            self.accumulator = self.accumulator.beside_the_optimizer()

    def open(self):
        """Return the sums of no gradient: one per weight, for each loss."""
        return [self.accumulator.open(i) for i in range(len(self.weights) * self.losses)]

    def begin(self):
        """Return the scalars of `BatchTotals` that the optimizer knows: factor and scale."""
        one = ops.ones((), self._dtype)
        scaled = self.model.optimizer.scale_loss(one)
        return self.accumulator.factor(), None if scaled is one else scaled

    def agreed(self, parts, masses):
        """Return what the replicas know of the batch together.

        Args:
            parts: List of ``(data, weight)``: what of the batch this replica has, and 1/n if n
                replicas have the same samples, else None.
            masses: The masses of what this replica has, or None.

        Returns:
            Tuple ``(samples, masses, places)``: those of the batch, and the place in it of the
            first sample of each part.
        """
        counts = [self.count(data) for data, _ in parts]
        if replicas.count() == 1:
            return sum(counts), masses, [draws.place(0)]
        is_own = ops.arange(replicas.count(), dtype="int32") == replicas.index()
        counts = [ops.where(is_own, rows, ops.zeros_like(rows)) for rows in counts]
        sums = replicas.sum_over([*counts, *(masses or ())])
        counts, masses = sums[: len(parts)], masses and sums[len(parts) :]
        copies = [round(1 / (weight or 1.0)) for _, weight in parts]
        samples = sum(ops.sum(rows) / n for rows, n in zip(counts, copies, strict=True))
        return samples, masses, [draws.place(place) for place in first_places(counts, copies)]

    def add(self, sums, state, data, totals, replica_weight=None, slopes=None):
        """Add one micro-batch.

        Args:
            sums: The accumulator's sums of gradients.
            state: `LoopState` after the micro-batches before.
            data: Tuple ``(x, y, sample_weight)``, as Keras' train steps take it.
            totals: `BatchTotals`.
            replica_weight: Weight of the micro-batch on this replica: 1/n if n replicas compute
                the same rows; None is 1.
            slopes: `Slopes` of the micro-batch's rows, or None where the loss is not that of the
                whole batch.

        Returns:
            Tuple ``(sums, state, outputs)``; outputs are the model's outputs and their masks if
            `gathers`, else None.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        samples = self.count(x)
        fraction = samples / totals.samples
        # What Keras on PyTorch makes of weights depends on how many steps are padding.
        given = sample_weight if self.padding is None else copies(sample_weight)

        def share(weights):
            with self._scope(weights, state, rows_of(x)) as scope:
                y_pred, metrics = self.differentiated_call(x), None
                if self.head is not None:
                    seen = y, y_pred, sample_weight
                    metrics = self._metrics_after(scope, state, fraction)
                    found, metrics = self.head.shares(self, seen, totals, metrics)
                    found = self.compiled_losses.with_added(found, fraction)
                elif slopes is not None:
                    found = self._pulled_back(y_pred, fraction, slopes)
                elif self.cuts:  # a batch that is one micro-batch needs no second pass
                    found = self.compiled_losses.of_batch(
                        x, y, y_pred, sample_weight, samples, self._dtype
                    )
                else:
                    found = self.compiled_losses.of(x, y, y_pred, sample_weight, samples, totals)
                if metrics is None:  # a loss of the model's own may have updated some, too
                    metrics = self._metrics_after(scope, state, fraction)
                assigned = state.assigned
                if slopes is None:
                    assigned = [scope.get_current_value(v) for v in self.loss_state]
                if replica_weight is not None:
                    found = keras.tree.map_structure(lambda value: value * replica_weight, found)
                loss, logged, losses = found
                seeds = [scope.get_current_value(v) for v in self.seeds]
                layers = self.state.read(scope)
            if totals.scale is not None and slopes is None:
                loss = keras.tree.map_structure(lambda v: v * ops.cast(totals.scale, v.dtype), loss)
            return loss, (y_pred, logged, losses, seeds, layers, metrics, assigned)

        found = added_gradients.add_gradients(
            share, self, sums, totals.factor, weights=totals.weights
        )
        y_pred, logged, losses, seeds, layers, metrics, assigned = found.aux
        self.has_gradient = found.has_gradient
        if slopes is not None:
            pairs = zip(found.has_gradient, self._loss_has_gradient, strict=True)
            self.has_gradient = [any(pair) for pair in pairs]
        if not self.has_own_metrics and self.head is None:
            # Keras' metrics take means over all steps.
            seen = y, y_pred, given
            seen = seen if self.padding is None else self.padding.filled(*seen)
            metrics = self.metrics_of_batch.added(state.metrics, metrics, seen, fraction)
        if replica_weight is not None:
            samples = samples * replica_weight
            metrics = [
                old + ops.cast((new - old) * replica_weight, old.dtype)
                for old, new in zip(state.metrics, metrics, strict=True)
            ]
        noise = list(state.noise)
        if noise:
            # Q of noise_scale.py: this gradient is that of the mean times samples / totals.samples.
            squares = ops.cast(found.square, samples.dtype) * totals.samples / samples
            noise = [noise[0] + squares, noise[1] + (replica_weight or 1.0)]
        norms = [total + ops.cast(ops.sqrt(found.square), total.dtype) for total in state.norms]
        state = LoopState(
            seeds=seeds,
            place=state.place + rows_of(x),
            metrics=metrics,
            layers=self.state.add(state.layers, layers, state.samples, samples, replica_weight),
            samples=state.samples + samples,
            loss=state.loss + logged,
            losses=[total + loss for total, loss in zip(state.losses, losses, strict=True)],
            assigned=assigned,
            noise=noise,
            norms=norms,
        )
        return found.sums, state, with_masks(y_pred) if self.gathers else None

    def _metrics_after(self, scope, state, fraction):
        values = [scope.get_current_value(v) for v in self.metrics]
        return self.metrics_of_batch.after_call(state.metrics, values, fraction)

    def finish(self, sums, state, rows, data=None, outputs=()):
        """Update the model and its metrics with the batch; return the logs.

        Args:
            sums: The accumulator's sums of gradients after the last micro-batch.
            state: `LoopState` after the last micro-batch.
            rows: Samples of the batch as an int, or None where a graph does not know them.
            data: Tuple ``(x, y, sample_weight)`` of the batch if `gathers`.
            outputs: What `add` returned for each micro-batch if `gathers`.
        """
        sums, state, counted = self._over_replicas(sums, state)
        for variable, value in zip(self.seeds, state.seeds, strict=True):
            variable.assign(value)
        for variable, value in zip(self.metrics, state.metrics, strict=True):
            variable.assign(value)
        self.state.assign(state.layers, state.samples)
        for variable, value in zip(self.loss_state, state.assigned, strict=True):
            variable.assign(value)
        rows = rows if replicas.count() == 1 or rows is None else counted
        self._track(state.loss, state.losses, counted, rows)
        x, y, sample_weight = data or (None, None, None)
        y_pred = joined(outputs) if outputs else None
        if outputs and not self.has_own_metrics:
            self.metrics_of_batch.update(y, y_pred, sample_weight)
        sums = [s if has else None for s, has in zip(sums, self.has_gradient, strict=True)]
        if self.noise is not None:
            self._observe_noise(sums, state)
        if self.weights:
            with self._norms_observed(sums, state):
                self.accumulator.close(sums)
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        if self.has_own_metrics:
            return self.logs(self.model.compute_metrics(x, y, y_pred, sample_weight))
        return self.logs(self.model.get_metrics_result())

    def logs(self, results):
        """Return what a batch logs: the metrics' `results`, and the norms of gradients if any."""
        return results if self.norms is None else {**results, **self.norms.logs()}

    def _track(self, loss, losses, samples, rows):
        keras_internals.track_loss(self.model, loss, samples)
        self.compiled_losses.track(losses, rows)

    def _over_replicas(self, sums, state):
        """Return the sums and the state of all replicas, and the samples that metrics count."""
        if replicas.count() == 1:
            return sums, state, state.samples
        sums, present = added_gradients.filled(sums, self.accumulator.open, state.samples)
        before = self.state.before(state.layers)
        metrics = [v.value for v in self.metrics]
        seeds = [v.value for v in self.seeds]
        sums, present, state, counted = merged(sums, present, state, metrics, seeds, before)
        if present:
            self.has_gradient = [bool(count) for count in present[0]]
        return sums, state, counted

    def _observe_noise(self, sums, state):
        assert self.noise is not None
        _, scale = self.begin()
        unscaled = 1.0 if scale is None else 1.0 / ops.cast(scale, "float32") ** 2
        squares, micro_batches = state.noise
        window_square = arrays.squared_norm([each for each in sums if each is not None])
        self.noise.values.assign(
            noise_scale.updated(
                self.noise.values.value,
                ops.cast(squares, "float32") * unscaled,
                window_square * unscaled,
                micro_batches,
                state.samples,
                self.noise.memory,
            )
        )

    def _norms_observed(self, sums, state):
        """Return a context in which the optimizer is given `sums`, and their norms are measured."""
        if self.norms is None:
            return contextlib.nullcontext()
        _, scale = self.begin()
        norm = ops.cast(state.norms[0], "float32")
        norm = norm if scale is None else norm / ops.cast(scale, "float32")
        return self.norms.during_update(sums, norm)
