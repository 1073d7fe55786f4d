"""The forward passes of a batch's micro-batches, and what the first of them tell."""

import contextlib
import functools
from typing import Any

import keras
from keras import ops

from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import added_gradients, arrays, draws, keras_internals
from tensorflow_ranger.backend.batches import count, resized, rows_of, slices
from tensorflow_ranger.backend.out_of_memory import is_out_of_memory
from tensorflow_ranger.backend.phases import LoopState
from tensorflow_ranger.backend.placed_draws import PlacedDraws, measured
from tensorflow_ranger.training.call_scope import CallScope, lasting
from tensorflow_ranger.training.compiled_losses import CompiledLosses, copies
from tensorflow_ranger.training.layer_state import CARRIED, LayerState
from tensorflow_ranger.training.metrics_of_batch import MetricsOfBatch
from tensorflow_ranger.training.rematerialization.caller import freeing
from tensorflow_ranger.training.whole_loss import WholeLoss


class ForwardPasses:
    """Calls the model on micro-batches, from what the batch began with, and assigns nothing.

    Args:
        model: A compiled and built Keras model.
        tasks: `Tasks` whose gradients are summed apart, or None.
        loss: "shares", "whole", or None to decide: see `microbatch`.
        padding: `Padding` that cuts the batches, or None.
        rematerialization: `Rematerialization` of the model, or None.
        head: `ChunkedHead` of the model, or None. `prepare` forgets one that saves no memory.
    """

    def __init__(
        self, model, tasks=None, loss=None, padding=None, rematerialization=None, head=None
    ):
        self.model = model
        self.padding = padding
        self.rematerialization: Any = rematerialization
        self.head: Any = head
        self.whole_head: str | None = None  #: Why the logits are not computed in chunks.
        self.noise = self.norms = None
        self.weights = list(model.trainable_variables)
        self.metrics = list(model.metrics_variables)
        self.seeds = keras_internals.seeds_of(model)
        #: What each draw of a forward pass has of the samples along its leading axis.
        self._multiples: list[int | None] | None = None
        self._full_shapes = []  # of draws, where samples have all their steps
        #: States of the seed generators whose numbers are not those of the whole batch.
        self.unplaced = []
        self.compiled_losses = CompiledLosses(model, tasks, loss)
        self.whole_loss = WholeLoss(self.compiled_losses)
        #: The variables that a loss of the whole batch assigns, once per batch.
        self.loss_state = []
        self.has_gradient = []
        self.state = LayerState(model, self.seeds)
        self._dtype = accumulator_dtype(keras.config.floatx())
        self.has_own_metrics = type(model).compute_metrics is not keras.Model.compute_metrics
        self.metrics_of_batch = MetricsOfBatch(model)
        self.unknown = []
        self.is_settled = True

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self.state.require_rows(samples)

    @property
    def loops_in_python(self):
        """Whether micro-batches differ in shape, so that no loop compiled by XLA can cut them."""
        return self.padding is not None

    def slices(self, data, size, start=0, stops=()):
        """Return the `Slice` objects of a batch: see `batches.slices`."""
        return (slices if self.padding is None else self.padding.slices)(data, size, start, stops)

    def in_order(self, cuts, parts):
        """Return what the micro-batches of `cuts` made as a list whose join is in their order."""
        return parts if self.padding is None else self.padding.in_order(cuts, parts)

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
            assigned, y_pred = self._first_call(data)
        except Exception as error:
            guessed = [] if is_out_of_memory(error) else self.state.guess_rows(samples)
            if not guessed:
                raise
            try:
                assigned, y_pred = self._first_call(data)
            except Exception:
                self.state.forget_guess(guessed)
                raise error from None
        self.has_gradient = [True] * (len(self.weights) * self.losses)
        self.state.find(assigned, samples)
        self.metrics_of_batch.find(y_pred, samples)

    def _first_call(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._find_head(x)
        with self._scope(rows=rows_of(x), also=self.metrics) as scope, self._freeing():
            y_pred = self.call(x)
            seen = y, y_pred, sample_weight
            if self.head is not None:
                seen = self.head.first_rows(*seen)
            self.whole_loss.find(seen[1])
            by_layers = {id(v) for v in scope.assigned}
            self.metrics_of_batch.find_own(scope.assigned, self.compiled_losses.is_own)
            self.compiled_losses.inspect(*seen)
            if self.compiled_losses.is_whole:
                weight = copies(sample_weight)
                self.compiled_losses.of_batch(x, y, y_pred, weight, self.count(x), self._dtype)
        # Another call makes layers forget which losses are theirs.
        self._find_draws(x, scope.draws)
        self._find_time_axes(x, y_pred, scope.draws)
        self._find_segments(x)
        if not self.compiled_losses.is_whole:
            return scope.assigned, y_pred
        assigned = [v for v in scope.assigned if id(v) in by_layers]
        metrics = {id(v) for v in self.metrics}
        others = [v for v in scope.assigned if id(v) not in by_layers | metrics]
        self.loss_state = list(lasting(self.model, others))
        return assigned, y_pred

    def _find_head(self, x):
        call = functools.partial(self._call_once, x)
        if self.head is None or not self.head.is_worth_it(self.model, call):
            self.head = None
            return
        self.compiled_losses.know_rows_apart()
        self.metrics_of_batch.know_rows_apart()

    def _find_draws(self, x, drawer):
        """Learn which draws have the samples along their leading axis, by a pass of another size.

        Args:
            x: Inputs of a micro-batch.
            drawer: `PlacedDraws` of a pass over them.
        """

        def look(rows):
            with self._scope(rows=rows) as scope, self._freeing():
                self.call(resized(x, rows))
            return scope.draws

        if drawer.leading:
            self._multiples = measured(look, drawer, count(x))
        self.unplaced = list(drawer.unplaced.values())

    def _find_time_axes(self, x, y_pred, drawer):
        if self.padding is not None:
            self._full_shapes = drawer.shapes
            with self._freeing():
                self.padding.learn(x, y_pred, self._call_once)

    def _find_segments(self, x):
        if self.rematerialization is not None:
            call = functools.partial(self._call_once, x)
            self.rematerialization.learn(call, count(x), self._head_layers)

    def _call_once(self, x):
        with self._scope(rows=rows_of(x)):
            return self.call(x)

    @property
    def losses(self):
        """How many losses are differentiated."""
        return self.compiled_losses.rows

    @property
    def needs_masses(self):
        """Whether a loss is divided by something else than its number of samples."""
        return self.compiled_losses.needs_masses and not self.cuts

    @property
    def cuts(self):
        """Whether the loss is computed once per batch, on the outputs of all its micro-batches."""
        return self.compiled_losses.is_whole

    def count(self, data):
        """Return the number of samples in `data` as a scalar."""
        return ops.cast(rows_of(data), self._dtype)

    def measure(self, data):
        """Return the masses of a micro-batch, one scalar per loss."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self._scope(rows=rows_of(x)), self._freeing():
            y_pred = self.call(x) if self.compiled_losses.needs_outputs else None
            if self.head is not None and y_pred is not None:
                y_pred = self.head.stand_in(y_pred)
            return self.compiled_losses.masses(y, y_pred, sample_weight, self._dtype)

    def initial(self):
        """Return the `LoopState` that a batch begins with."""
        zero = ops.zeros((), self._dtype)
        return LoopState(
            seeds=[v.value for v in self.seeds],
            place=draws.place(0),
            metrics=[v.value for v in self.metrics],
            layers=self.state.open(),
            samples=zero,
            loss=ops.zeros((), keras.config.floatx()),
            losses=[ops.zeros((), loss.loss.dtype) for loss in self.compiled_losses.losses],
            assigned=[v.value for v in self.loss_state],
            noise=[] if self.noise is None else [zero, zero],
            norms=[] if self.norms is None else [zero],
        )

    def compile_call(self, compiled):
        """Let ``compiled(call)`` call the model from now on."""
        self.call = compiled(self.call)

    def call(self, x):
        """Return the model's outputs in training."""
        if keras_internals.takes_training(self.model):
            return self.model(x, training=True)
        return self.model(x)

    @property
    def _head_layers(self):
        return None if self.head is None else self.head.layers

    def _freeing(self):
        if self.head is None and self.rematerialization is None:
            return contextlib.nullcontext()
        return freeing(self._head_layers)

    def differentiated_call(self, x):
        """Return the model's outputs in training, of which the backward pass may repeat parts.

        With a head in chunks they are what it is given.
        """
        context = self._freeing()
        if self.rematerialization is not None:
            context = self.rematerialization.replaying(self._head_layers)
        with context:
            return self.call(x)

    def _variables(self, also):
        """Give what a forward pass may read: the model's variables and those in `also`."""
        yield from self.weights
        yield from self.model.non_trainable_variables
        yield from also

    @contextlib.contextmanager
    def _scope(self, weights=None, begun=None, rows=None, carried=(CARRIED,), also=()):
        """Give the scope of a forward pass that begins where `begun` says.

        Args:
            weights: Values of the trained weights, each or all None for their own.
            begun: `LoopState` after the micro-batches before, or None when the batch begins.
            rows: Samples of the micro-batch, which draws the batch's numbers of its own samples
                from the seeds that the batch began with; or None to go on from those of `begun`.
            carried: Kinds of layers' state that go on from the micro-batch before.
            also: Variables that are read beside the model's own.
        """
        layers, start = (None, 0) if begun is None else (begun.layers, begun.samples)
        pairs = added_gradients.current_values(self._variables(also))
        # Keras looks for a regularized weight nowhere but in the scope.
        pairs += ((w, w.value) for w in self.weights if w.regularizer is not None)
        if weights is not None:
            given = zip(self.weights, weights, strict=True)
            pairs += (pair for pair in given if pair[1] is not None)
        if begun is not None:
            seeds = begun.seeds if rows is None else [v.value for v in self.seeds]
            pairs += zip(self.seeds, seeds, strict=True)
            pairs += zip(self.metrics, begun.metrics, strict=True)
        with self.state.placed(layers, start, rows, carried) as placed:
            mapping = {id(variable): (variable, value) for variable, value in [*pairs, *placed]}
            reassigned = self.weights if arrays.KEEPS_ALL_ASSIGNMENTS else ()
            drawer = None
            if rows is not None:
                place = draws.place(0) if begun is None else begun.place
                drawer = PlacedDraws(place, rows, self._multiples, full=self._full_shapes)
            with CallScope(mapping.values(), reassigned, drawer) as scope:
                yield scope
