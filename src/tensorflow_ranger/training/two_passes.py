"""A batch whose loss needs all its outputs: forward passes, the loss, and what it hands back."""

import keras
from keras import ops

from tensorflow_ranger.backend import added_gradients, arrays, replicas
from tensorflow_ranger.backend.batches import rows_of
from tensorflow_ranger.backend.phases import BatchOutputs, BatchPart, Slopes
from tensorflow_ranger.training.compared_passes import ComparedPasses
from tensorflow_ranger.training.compiled_losses import copies


class TwoPasses(ComparedPasses):
    """The phases that a loss of the whole batch needs beside those of `BatchStep`.

    Args:
        model: A compiled and built Keras model.
        accumulator: What holds the sums of gradients.
        tasks: `Tasks` whose gradients are summed apart, or None.
        loss: "shares", "whole", or None to decide: see `microbatch`.
        padding: `Padding` that cuts the batches, or None.
        rematerialization: `Rematerialization` of the model, or None.
        head: `ChunkedHead` of the model, or None.
    """

    def __init__(
        self,
        model,
        accumulator,
        tasks=None,
        loss=None,
        padding=None,
        rematerialization=None,
        head=None,
    ):
        super().__init__(model, tasks, loss, padding, rematerialization, head)
        self.accumulator = accumulator
        self._loss_has_gradient = []

    def table(self, data, size):
        """Return the division of a batch as an array, or None: see `Padding.table`."""
        return None if self.padding is None else self.padding.table(data, size)

    def sorted(self, data, table=None):
        """Return the `TrimmedSamples` of a batch, or None where they are cut as they are given."""
        return None if self.padding is None else self.padding.sorted(data, table)

    def forward(self, state, data, samples, replica_weight=None):
        """Run a micro-batch forward, and commit nothing.

        From the same `state`, `add` draws the same random numbers and reads the same layer state.

        Args:
            state: `LoopState` after the micro-batches before.
            data: Tuple ``(x, y, sample_weight)``.
            samples: Scalar; samples of the batch.
            replica_weight: As in `BatchStep.add`.

        Returns:
            Tuple ``(state, outputs)``: the `LoopState` after it, and its `BatchOutputs`.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        own = self.count(x) if replica_weight is None else self.count(x) * replica_weight
        with self._scope(None, state, rows_of(x)) as scope:
            y_pred = self.call(x)
            outputs = self.whole_loss.outputs_of(y_pred, own / samples)
            seeds = [scope.get_current_value(v) for v in self.seeds]
            layers = self.state.read(scope)
        layers = self.state.add(state.layers, layers, state.samples, own, replica_weight)
        state = state._replace(
            seeds=seeds,
            place=state.place + rows_of(x),
            layers=layers,
            samples=state.samples + own,
        )
        return state, outputs

    @property
    def output_specs(self):
        """The `OutputSpecs` of `forward`."""
        return self.whole_loss.specs

    def differentiate(self, sums, begun, ended, parts, totals):
        """Compute the batch's loss, and add its gradients by the weights that it reads itself.

        Args:
            sums: The accumulator's sums of gradients.
            begun: `LoopState` that the batch began with.
            ended: `LoopState` after the forward passes.
            parts: List of `BatchPart`: the batch, or what of it this replica has.
            totals: `BatchTotals`.

        Returns:
            Tuple ``(sums, state, slopes)``: the `LoopState` that the second pass begins with, and
            the `Slopes` of each part.
        """
        batch, places = (parts[0], None) if replicas.count() == 1 else self._gathered(parts)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch.data)
        # Each replica computes the loss of all: its gradients count once.
        part = 1.0 / replicas.count()

        def loss_of(weights, inputs):
            with self._scope(weights, ended) as scope:
                y_pred = self.whole_loss.y_pred_of(batch.outputs, inputs)
                loss, logged, losses = self.compiled_losses.of_batch(
                    x, y, y_pred, copies(sample_weight), totals.samples, self._dtype
                )
                assigned = [scope.get_current_value(v) for v in self.loss_state]
                metrics = [scope.get_current_value(v) for v in self.metrics]
            factor = part if totals.scale is None else totals.scale * part
            loss = keras.tree.map_structure(lambda v: v * ops.cast(factor, v.dtype), loss)
            return loss, (logged * part, [each * part for each in losses], assigned, metrics)

        inputs = self.whole_loss.inputs_of(batch.outputs)
        found = added_gradients.add_gradients(loss_of, self, sums, totals.factor, inputs)
        self._loss_has_gradient = found.has_gradient
        logged, losses, assigned, metrics = found.aux
        slopes = self.whole_loss.slopes_of(
            [[each * ops.cast(1 / part, each.dtype) for each in slopes] for slopes in found.slopes]
        )
        state = begun._replace(loss=logged, losses=losses, assigned=assigned, metrics=metrics)
        if places is None:
            return found.sums, state, [slopes]
        return found.sums, state, [self._own_rows(slopes, *place) for place in places]

    def _gathered(self, parts):
        """Return the `BatchPart` of all replicas, and where in it the rows of each part are."""
        nested, leaves, places, start = None, [], [], 0
        for part in parts:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part.data)
            x = x if self.compiled_losses.is_own else None  # no other loss looks at the inputs
            nested = ((x, y, sample_weight), part.outputs.rows)
            own = [leaf for leaf in keras.tree.flatten(nested) if leaf is not None]
            copies_of = 1 if part.weight is None else round(1 / part.weight)
            found, offset, total = replicas.gather(own, copies_of)
            places.append((start + offset, rows_of(own[0])))
            start = start + total
            leaves.append(found)
        joined = iter([ops.concatenate(each) for each in zip(*leaves, strict=True)])
        data, rows = keras.tree.map_structure(
            lambda leaf: None if leaf is None else next(joined), nested
        )
        added = [sum(each) for each in zip(*(part.outputs.added for part in parts), strict=True)]
        outputs = BatchOutputs(rows, replicas.sum_over(added) if added else [])
        return BatchPart(data, outputs, None), places

    def _own_rows(self, slopes, start, count):
        rows = [[arrays.rows_at(leaf, start, count) for leaf in each] for each in slopes.rows]
        return Slopes(rows, slopes.added)

    def _pulled_back(self, y_pred, fraction, slopes):
        """Return the losses of a micro-batch in the second pass: `CompiledLosses.of`'s tuple."""
        losses = self.whole_loss.pulled_back(y_pred, fraction, slopes)
        nothing = [ops.zeros((), record.loss.dtype) for record in self.compiled_losses.losses]
        zero = ops.zeros((), keras.config.floatx())
        return losses if self.losses > 1 else losses[0], zero, nothing
