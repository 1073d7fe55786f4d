"""JAX: pure compiled functions of the state, whose buffers are donated."""

import functools
from typing import Any

import jax
import keras
import numpy as np

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.batches import count, cut, has_sparse, joined_outputs
from tensorflow_ranger.backend.jax import row_lists
from tensorflow_ranger.backend.jax.device_loop import DeviceLoop
from tensorflow_ranger.backend.jax.known_memory import KnownMemory
from tensorflow_ranger.backend.jax.memory import shapes
from tensorflow_ranger.backend.phases import (
    BatchPart,
    BatchTotals,
    Phases,
    Slopes,
)


class JaxStep(DeviceLoop, KnownMemory):
    """Runs a batch: `run` returns the logs and the next state.

    Args:
        phases: `Phases` of the batch.
        loop: "device" for one compiled function with a `lax.scan`; "host" for one compiled
            function per micro-batch, called from Python.
        compiled: Whether to compile at all.
    """

    def __init__(self, phases: Phases, loop, compiled):
        self._phases = phases
        self._loop = loop
        self._prepared = False
        model = phases.model
        self._trainable = phases.weights
        self._non_trainable = model.non_trainable_variables
        self._optimizer = model.optimizer.variables
        self._metrics = phases.metrics
        self._known = {}
        self._compiled = bool(compiled)
        self._tables = []  # places of the weights whose gradients are lists of rows
        self._begin: Any
        self._add: Any
        self._forward: Any
        self._differentiate: Any
        self._whole: Any
        if not compiled:
            self._begin, self._measure, self._add = self._open, self._weigh, self._add_micro_batch
            self._finish, self._whole = self._close, self._run_on_device
            self._forward, self._differentiate = self._run_forward, self._cut_loss
            return
        self._begin = jax.jit(self._open, donate_argnums=0)
        self._measure = jax.jit(self._weigh)
        self._add = jax.jit(self._add_micro_batch, donate_argnums=0)
        self._forward = jax.jit(self._run_forward)
        self._differentiate = jax.jit(self._cut_loss, donate_argnums=0)
        # Totals become the momentum where they live in it; elsewhere they end here.
        donated = (0, 1, 2) if phases.accumulator.slots else (0, 1)
        self._finish = jax.jit(self._close, donate_argnums=donated, static_argnums=5)
        self._whole = jax.jit(self._run_on_device, donate_argnums=0, static_argnums=(2, 3))

    def run(self, state, data, size, rows):
        """Train on the batch `data`, `size` samples at a time.

        Args:
            state: Keras' four lists of values: trainable, non-trainable, optimizer, metrics.
            data: Tuple ``(x, y, sample_weight)`` of the batch.
            size: Samples per micro-batch.
            rows: The batch's samples, or None where Keras' own graph would not know them.

        Returns:
            Tuple ``(logs, state)``.
        """
        self.prepare(state, data, size)
        self._require_memory(state, data, size)
        if self._is_on_host(data, size):
            return self._run_on_host(state, data, size, rows)
        return self._whole(state, data, size, rows)

    def _is_on_host(self, data, size):
        # A compiled loop cuts arrays, all alike, and returns no outputs and no rows.
        phases = self._phases
        needs_python = phases.gathers or phases.cuts or phases.loops_in_python or self._tables
        loops_on_host = self._loop == "host" and size < count(data)  # one micro-batch is no loop
        return bool(loops_on_host or needs_python or has_sparse(data))

    @property
    def is_settled(self):
        """Whether all is known that decides what the step computes."""
        return self._phases.is_settled

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self._phases.require_rows(samples)

    def _run_on_host(self, state, data, size, rows):
        trainable, non_trainable, optimizer, metrics = state
        data = jax.tree.map(np.asarray, data) if jax.default_backend() == "cpu" else data
        cuts = self._phases.slices(data, size)
        micro_batches = [each.of(data) for each in cuts]
        slots = self._phases.accumulator.slots
        held = [optimizer[slot] for slot in slots]
        optimizer = list(optimizer)
        for slot in slots:
            optimizer[slot] = None
        sums, loop_state, factor, scale = self._begin(held, optimizer, non_trainable, metrics)
        place, masses = loop_state.place, None
        if self._phases.needs_masses:
            measured = [self._measure(trainable, non_trainable, m) for m in micro_batches]
            masses = jax.tree.map(lambda *values: sum(values), *measured)
        samples = np.asarray(count(data), loop_state.samples.dtype)
        totals = BatchTotals(samples, masses, factor, scale)
        slopes = [None] * len(cuts)
        if self._phases.cuts and len(cuts) > 1:
            ended, parts = loop_state, []
            for each, micro_batch in zip(cuts, micro_batches, strict=True):
                ended = each.placed(ended)
                ended, part = self._forward(ended, trainable, non_trainable, micro_batch, samples)
                parts.append(part)
            parts = self._phases.in_order(cuts, parts)
            ended = ended._replace(place=place)
            sums, loop_state, found = self._differentiate(
                sums, loop_state, ended, trainable, non_trainable, data, parts, totals
            )
            slopes = [Slopes(each.slopes_of(found[0].rows), found[0].added) for each in cuts]
        outputs, lists = [], {place: [] for place in self._tables}
        for each, micro_batch, cut_here in zip(cuts, micro_batches, slopes, strict=True):
            loop_state = each.placed(loop_state)
            sums, loop_state, output = self._add(
                sums, loop_state, trainable, non_trainable, micro_batch, totals, cut_here
            )
            sums = row_lists.moved(sums, lists)
            outputs.append(output)
        loop_state = loop_state._replace(place=place)  # of one shape, whatever came last
        batch = (None, ())
        if self._phases.gathers:
            batch = data, self._phases.in_order(cuts, outputs)
        sums = row_lists.joined(sums, lists)
        return self._finish(trainable, optimizer, sums, non_trainable, loop_state, rows, *batch)

    def _open(self, held, optimizer, non_trainable, metrics):
        with self._scope(optimizer=self._merged(optimizer, held)):
            sums = self._opened(self._tables)
            factor, scale = self._phases.begin()
        with self._scope(non_trainable=non_trainable, metrics=metrics):
            return sums, self._phases.initial(), factor, scale

    def _opened(self, tables):
        return [None if i in tables else total for i, total in enumerate(self._phases.open())]

    def _weigh(self, trainable, non_trainable, data):
        metrics = [None] * len(self._metrics)
        with self._scope(trainable, non_trainable, metrics=metrics):
            return self._phases.measure(data)

    def _add_micro_batch(
        self, sums, loop_state, trainable, non_trainable, data, totals, slopes=None
    ):
        with self._scope(trainable, non_trainable, metrics=loop_state.metrics):
            return self._phases.add(sums, loop_state, data, totals, slopes=slopes)

    def _run_forward(self, loop_state, trainable, non_trainable, data, samples):
        with self._scope(trainable, non_trainable, metrics=loop_state.metrics):
            return self._phases.forward(loop_state, data, samples)

    def _cut_loss(self, sums, begun, ended, trainable, non_trainable, data, parts, totals):
        with self._scope(trainable, non_trainable, metrics=begun.metrics):
            batch = [BatchPart(data, joined_outputs(parts), None)]
            return self._phases.differentiate(sums, begun, ended, batch, totals)

    def _close(self, trainable, optimizer, sums, non_trainable, loop_state, rows, data, outputs):
        optimizer = self._merged(optimizer, sums if self._phases.accumulator.slots else ())
        scope = self._scope(trainable, non_trainable, optimizer, loop_state.metrics)
        with scope:
            logs = self._phases.finish(sums, loop_state, rows, data, outputs)
        return logs, self._state(scope)

    def _run_on_device(self, state, data, size, rows):
        return self._run_parts(state, [(data, None)], size, rows)

    def prepare(self, state, data, size):
        """Learn from a micro-batch of a batch what `run` needs to know, once."""
        if self._prepared:
            return

        def prepare(state, data, samples):
            with self._scope(*state):
                self._phases.prepare(data, samples)

        def probe(state, data):
            with self._scope(*state):
                return self._phases.probe(data)

        seen = row_lists.Seen()
        if self._compiled:
            prepare = functools.partial(prepare, samples=count(data))
            with keras_internals.looking_up_by(seen):
                jax.eval_shape(prepare, state, shapes(data, size))
        else:
            prepare(state, cut(data, 0, size), count(data))
        run = jax.jit(probe) if self._compiled else probe
        self._phases.examine(functools.partial(run, state), self._comparable(data), size)
        self._tables = self._tables_among(seen, state, data, size)
        self._prepared = True

    def _tables_among(self, seen, state, data, size):
        """Return the places of the weights whose gradients are lists of rows."""

        def add(tables, state, data):
            phases = self._phases
            with self._scope(*state):
                factor, scale = phases.begin()
                masses = phases.measure(data) if phases.needs_masses else None
                totals = BatchTotals(phases.count(data), masses, factor, scale)
                return phases.add(self._opened(tables), phases.initial(), data, totals)[0]

        def trace(tables):
            return jax.eval_shape(functools.partial(add, tables), state, shapes(data, size))

        return row_lists.tables_of(self._phases, seen, trace, -(-count(data) // size))

    def _comparable(self, data):
        """Return the batch as arrays of which a few samples can be cut, or None."""
        return data

    def _merged(self, optimizer, held):
        merged = list(optimizer)
        for slot, value in zip(self._phases.accumulator.slots, held, strict=False):
            merged[slot] = value
        return merged

    def _scope(self, trainable=(), non_trainable=(), optimizer=(), metrics=()):
        groups = (
            (self._trainable, trainable),
            (self._non_trainable, non_trainable),
            (self._optimizer, optimizer),
            (self._metrics, metrics),
        )
        return keras.StatelessScope(
            [
                (variable, value)
                for variables, values in groups
                for variable, value in zip(variables, values, strict=False)
                if value is not None
            ]
        )

    def _state(self, scope):
        return tuple(
            [scope.get_current_value(variable) for variable in group]
            for group in (self._trainable, self._non_trainable, self._optimizer, self._metrics)
        )
