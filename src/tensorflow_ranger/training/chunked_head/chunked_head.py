"""Computes a micro-batch's loss and metrics from its hidden states, a chunk of rows at a time."""

import contextlib
import math

import keras
from keras import ops

from tensorflow_ranger.backend import added_gradients, chunks, keras_internals
from tensorflow_ranger.backend.batches import cut
from tensorflow_ranger.batch_size.plan import format_bytes
from tensorflow_ranger.training.call_scope import CallScope
from tensorflow_ranger.training.chunked_head.rows import (
    as_rows,
    rows_of_sample,
    targets_as_rows,
    weights_as_rows,
)
from tensorflow_ranger.training.compiled_losses import Shares, copies
from tensorflow_ranger.training.metrics_of_batch import masked
from tensorflow_ranger.training.rematerialization.chain import ChainMeasurer, bytes_per_number

LEAST_ROWS = 256  # of a chunk: fewer would add up the weights' gradients more than multiply
LEAST_BYTES = 2**23  # of a batch's logits: smaller ones stay whole


class ChunkedHead:
    """The layers that make the logits, the losses and the metrics, as a function of hidden states.

    Args:
        layers: `HeadLayers` of the model.
        counts_samples: Of each of the metrics' variables: whether it counts samples, and not rows.
        count: Chunks of a micro-batch, or None for as many as make the logits of a chunk about as
            large as the hidden states or the kernel, whichever are larger.
        is_forced: Whether to use it, even where the logits are not the largest thing in memory.
    """

    def __init__(self, layers, counts_samples, count, is_forced):
        self.layers = layers
        self._counts_samples = counts_samples
        self._count = count
        self._is_forced = is_forced
        self.summary: str | None = None

    def is_worth_it(self, model, call):
        """Return whether the logits are larger than all else that the forward pass keeps.

        Args:
            model: The Keras model.
            call: Function without arguments that calls the model in a `CallScope`.
        """
        measurer = ChainMeasurer(model, self.layers)
        with keras_internals.calling_by(measurer):
            (hidden,) = keras.tree.flatten(call())
        number = math.prod(hidden.shape[:-1])
        of_row = self.layers.outputs * bytes_per_number(self.layers.dtype)
        if not self._is_forced and number * of_row <= sum(link.kept for link in measurer.links):
            return False
        rows = min(number, self.rows_of_chunk(number))
        self.summary = (
            f"The logits of {hidden.shape[0]} samples, {format_bytes(number * of_row)}, are "
            f"computed in chunks of {rows} rows, {format_bytes(rows * of_row)}."
        )
        return True

    def rows_of_chunk(self, rows):
        """Return the rows of a chunk of so many, which may be a tensor."""
        if self._count is not None:
            return -(-rows // self._count)
        width, outputs = self.layers.width, self.layers.outputs
        least = max(LEAST_ROWS, width)
        like_hidden = rows * width // outputs
        return max(least, like_hidden) if isinstance(rows, int) else ops.maximum(least, like_hidden)

    def first_rows(self, y, hidden, sample_weight):
        """Return targets, outputs and weights of the first rows of a micro-batch."""
        *rows, mask = cut(self._rows(y, hidden, sample_weight), 0, LEAST_ROWS)
        y, hidden, sample_weight = rows
        return y, self._outputs(hidden, mask), sample_weight

    def stand_in(self, hidden):
        """Return a tensor that has the mask of the outputs, in their place."""
        (states,) = keras.tree.flatten(hidden)
        outputs = keras.tree.pack_sequence_as(self.layers.graph.output, [states[..., :1]])
        return masked(outputs, [self.layers.mask_of(states)])

    def shares(self, phases, seen, totals, metrics):
        """Return the `Shares` of a micro-batch, and the metrics' values after it.

        The gradient of the shares is known before this returns: see `chunks.summed_over_chunks`.

        Args:
            phases: The `ForwardPasses` of the batch, in whose scope the hidden states were made.
            seen: Tuple ``(y, hidden, sample_weight)`` of the micro-batch.
            totals: `BatchTotals`.
            metrics: The values of the metrics' variables before it.
        """
        losses = phases.compiled_losses
        dtype = keras.backend.standardize_dtype(totals.samples.dtype)
        y, hidden, sample_weight, mask = self._rows(*seen)
        (states,) = keras.tree.flatten(seen[1])
        steps = rows_of_sample(tuple(ops.shape(states)[:-1]))
        variables = {id(v): v for layer in self.layers.layers for v in layer.variables}
        with keras_internals.in_call_state({}):
            values = {key: ops.stop_gradient(v.value) for key, v in variables.items()}
            weights = [ops.convert_to_tensor(v.value) for v in self.layers.weights]
        keys = [id(v) for v in self.layers.weights]

        def of_chunk(hidden, weights, rows, state):
            y, sample_weight, mask = rows
            unlogged, parts, metrics = state
            with self._again({**values, **dict(zip(keys, weights, strict=True))}):
                y_pred = self._outputs(hidden, mask)
                samples = ops.cast(ops.shape(hidden)[0], dtype) / ops.cast(steps, dtype)
                own = losses.of_outputs(y, y_pred, copies(sample_weight), samples, totals)
            seen = y, self._for_metrics(y_pred, mask), copies(sample_weight)
            metrics = phases.metrics_of_batch.updated(metrics, *seen)
            unlogged = unlogged + ops.stop_gradient(ops.cast(sum(own.unlogged), dtype))
            parts = [
                total + ops.stop_gradient(ops.cast(part, total.dtype))
                for total, part in zip(parts, own.parts, strict=True)
            ]
            total = own.total
            if totals.scale is not None:  # small gradients are lost without it
                total = total * ops.cast(totals.scale, total.dtype)
            return total, (unlogged, parts, metrics)

        begun = (
            ops.zeros((), dtype),
            [ops.zeros((), record.loss.dtype) for record in losses.losses],
            metrics,
        )
        size = self.rows_of_chunk(hidden.shape[0] or ops.shape(hidden)[0])
        rows = y, sample_weight, mask
        total, (unlogged, parts, after) = chunks.summed_over_chunks(
            of_chunk, hidden, weights, rows, begun, size, dtype
        )
        if totals.scale is not None:
            total = total / ops.cast(totals.scale, dtype)
        after = [
            old + (new - old) / ops.cast(steps, old.dtype) if counts_samples else new
            for old, new, counts_samples in zip(metrics, after, self._counts_samples, strict=True)
        ]
        total = ops.cast(total, keras.config.floatx())
        return Shares(total, [unlogged], parts, []), after

    def _rows(self, y, hidden, sample_weight):
        (hidden,) = keras.tree.flatten(hidden)
        axes, mask = len(hidden.shape) - 1, self.layers.mask_of(hidden)
        return (
            targets_as_rows(y, axes),
            as_rows(hidden, axes),
            weights_as_rows(sample_weight, tuple(ops.shape(hidden)[:-1])),
            None if mask is None else as_rows(mask, axes),
        )

    def _outputs(self, hidden, mask):
        return masked(self.layers(hidden), [mask])

    def _for_metrics(self, y_pred, mask):
        y_pred = keras.tree.map_structure(ops.stop_gradient, y_pred)
        return masked(y_pred, [mask if added_gradients.KEEPS_MASKS else None])

    @contextlib.contextmanager
    def _again(self, values):
        scope = CallScope.current().begun_again(values)
        calls, state = keras_internals.calling_by(None), keras_internals.in_call_state({})
        with calls, state, scope:
            yield
