"""TensorFlow: one graph with a loop in it, or one graph per micro-batch under XLA on CPU."""

from typing import Any

import keras
import tensorflow as tf

from tensorflow_ranger.backend.batches import count, cut, has_sparse, joined_outputs, mapped
from tensorflow_ranger.backend.phases import (
    BatchOutputs,
    BatchPart,
    BatchTotals,
    Phases,
    Slopes,
)
from tensorflow_ranger.backend.tensorflow import table_rows
from tensorflow_ranger.backend.tensorflow.arrays import kept
from tensorflow_ranger.backend.tensorflow.replicas import in_lockstep
from tensorflow_ranger.backend.tensorflow.sample_loops import fold_samples
from tensorflow_ranger.backend.tensorflow.strategies import strategy_of
from tensorflow_ranger.backend.tensorflow.workers import (
    trainer_overrides as trainer_overrides,
)

KNOWS_MEMORY = False  # before a step has run
ADDS_IN_PLACE = False  # a failed batch has changed nothing


def default_loop(compiled):
    """Return "device" or "host": where the loop over micro-batches runs best."""
    # XLA's CPU runs a convolution inside a loop on one thread.
    return "host" if compiled and not tf.config.list_physical_devices("GPU") else "device"


def rows(leaf):
    """Return the number of samples that `leaf` of a batch gives to a replica at most."""
    return max(part.shape[0] if len(part.shape) else -1 for part in _parts(leaf))


def first_part(data):
    """Return the first replica's part of a batch."""
    return keras.tree.map_structure(lambda leaf: _parts(leaf)[0], data)


def batches_here(data):
    """Return a list of the parts of a batch that the replicas of this process are given."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    return [
        mapped(lambda leaf, number=number: _parts(leaf)[number], data)
        for number in range(len(_parts(leaves[0])))
    ]


def state_of_one(model, metrics):
    """Return None: a step of one replica reads the variables."""


def without_optionals(data):
    """Return `data` of an iterator with None for what is not there: an empty `tf.Optional`."""
    return keras.tree.map_structure(
        lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, data
    )


def make_step(phases, loop, compiled):
    """Return the step that runs `phases`."""
    return Step(phases, loop, compiled)


class Step:
    """Runs a batch: `run` returns the logs and None.

    The variables are assigned after the last micro-batch, so that a batch that fails has changed
    nothing.

    Args:
        phases: `Phases` of the batch.
        loop: "device" for one graph with a `tf.while_loop`; "host" for one graph per micro-batch,
            called from Python.
        compiled: True for XLA, False for a graph, None to run eagerly. Replicas, which meet within
            the step, run in a graph.
    """

    def __init__(self, phases: Phases, loop, compiled):
        self._phases = phases
        self._strategy: Any = None if phases.is_alone else strategy_of(phases.weights)
        if self._strategy is None and tf.distribute.has_strategy():
            strategy = type(tf.distribute.get_strategy()).__name__
            raise ValueError(
                f"A step of one replica runs outside of tf.distribute: got the scope of {strategy}."
                " Call fit, verify and check_exact outside of strategy.scope(), which is for "
                "building and compiling the model."
            )
        if self._strategy is not None:
            compiled = False
        self._has_several_processes = in_lockstep(phases.weights)
        self._loop = loop
        self._xla = bool(compiled)
        self._runs_eagerly = compiled is None
        self._prepared = False
        self._tables = []  # places of the sums that are lists of rows

        def graph(function, **options):
            if compiled is None:
                return function
            return tf.function(function, jit_compile=bool(compiled), autograph=False, **options)

        self._graph = graph
        self._begin = graph(self._open)
        of_any_shape = {"reduce_retracing": phases.loops_in_python and not compiled}
        self._measure = graph(phases.measure, **of_any_shape)
        self._add = graph(phases.add, **of_any_shape)
        self._forward = graph(phases.forward, **of_any_shape)
        self._differentiate = graph(phases.differentiate)
        # A list of rows has as many as a batch looks up.
        self._finish = graph(phases.finish, **of_any_shape)
        self._per_size = {}

    def run(self, state, data, size, rows):
        """Train on the batch `data`, `size` samples at a time.

        Args:
            state: None.
            data: Tuple ``(x, y, sample_weight)`` of the batch.
            size: Samples per micro-batch.
            rows: The batch's samples, or None where Keras' own graph would not know them.

        Returns:
            Tuple ``(logs, state)``.
        """
        self.prepare(state, data, size)
        if self._strategy is not None:
            self._for_size(self._run_on_replicas, size, rows)(data)
            return self._phases.logs(self._phases.model.get_metrics_result()), None
        phases = self._phases
        # XLA knows no rows of which it does not know the number, such as outputs that are gathered.
        cuts_in_xla = phases.cuts and self._xla
        is_varying = phases.gathers or cuts_in_xla or (self._tables and self._xla)
        is_varying = is_varying or (phases.loops_in_python and self._xla)
        loops_on_host = self._loop == "host" and size < count(data)  # one micro-batch is no loop
        if loops_on_host or self._runs_eagerly or is_varying or has_sparse(data):
            return self._run_on_host(data, size, rows), None
        table = phases.table(data, size)
        table = None if table is None else tf.constant(table)
        return self._for_size(self._run_on_device, size, rows)(data, table), None

    def _for_size(self, function, size, rows):
        # A function for each size: of one that is traced again and again TensorFlow warns.
        key = size, rows
        if key not in self._per_size:
            self._per_size[key] = self._graph(
                lambda data, table=None: function(data, size, rows, table),
                reduce_retracing=not self._xla,
            )
        return self._per_size[key]

    @property
    def is_settled(self):
        """Whether all is known that decides what the step computes."""
        return self._phases.is_settled

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self._phases.require_rows(samples)

    def _open(self):
        sums = table_rows.begun(self._phases.open(), self._tables)
        return sums, self._phases.initial(), *self._phases.begin()

    def _run_on_host(self, data, size, rows):
        sums, loop_state, factor, scale = self._begin()
        place = loop_state.place
        cuts = self._phases.slices(data, size)
        micro_batches = [each.of(data) for each in cuts]
        masses = None
        if self._phases.needs_masses:
            measured = [self._measure(micro_batch) for micro_batch in micro_batches]
            masses = tf.nest.map_structure(lambda *values: tf.add_n(values), *measured)
        samples = tf.cast(count(data), loop_state.samples.dtype)
        totals = BatchTotals(samples, masses, factor, scale)
        slopes, lists = [None] * len(cuts), table_rows.Collected()
        if self._phases.cuts and len(cuts) > 1:
            ended, parts = loop_state, []
            for each, micro_batch in zip(cuts, micro_batches, strict=True):
                ended, part = self._forward(each.placed(ended), micro_batch, samples)
                parts.append(part)
            ended = ended._replace(place=place)
            parts = self._phases.in_order(cuts, parts)
            batch = [BatchPart(data, joined_outputs(parts), None)]
            sums, loop_state, (found,) = self._differentiate(sums, loop_state, ended, batch, totals)
            slopes = [Slopes(each.slopes_of(found.rows), found.added) for each in cuts]
        outputs = []
        for each, micro_batch, cut_here in zip(cuts, micro_batches, slopes, strict=True):
            sums, loop_state, output = self._add(
                sums, each.placed(loop_state), micro_batch, totals, slopes=cut_here
            )
            sums = lists.take(sums)
            outputs.append(output)
        batch = ()
        if self._phases.gathers:
            batch = data, self._phases.in_order(cuts, outputs)
        loop_state = loop_state._replace(place=place)  # of one shape, whatever came last
        return self._finish(lists.joined(sums), loop_state, rows, *batch)

    def _run_on_replicas(self, data, size, rows, table):
        self._strategy.run(self._run_on_device, args=(data, size, rows, table))

    def prepare(self, state, data, size):
        """Learn from a micro-batch of a batch what `run` needs to know, once."""
        if self._prepared:
            return
        data = first_part(data)

        def prepare(micro_batch):
            self._phases.prepare(micro_batch, count(data))

        def probe(some):
            return self._graph(lambda data: self._phases.probe(data))(some)

        micro_batch = cut(data, 0, size)
        places = [*range(len(self._phases.weights))] if self._phases.accumulator.takes_rows else []
        if self._runs_eagerly:
            with kept(self._phases.model):
                prepare(micro_batch)
            self._tables = places
        else:
            graph = tf.function(prepare, autograph=False).get_concrete_function(micro_batch).graph
            if places and table_rows.looks_up(graph):
                self._tables = self._tables_among(places, micro_batch)
        with kept(self._phases.model):
            self._phases.examine(probe, None if self._has_several_processes else data, size)
        self._prepared = True

    def _tables_among(self, places, micro_batch):
        """Return the places of the sums that are lists of rows, as tracing a micro-batch tells."""
        tables = []

        def add(micro_batch):
            phases = self._phases
            factor, scale = phases.begin()
            masses = phases.measure(micro_batch) if phases.needs_masses else None
            totals = BatchTotals(phases.count(micro_batch), masses, factor, scale)
            sums = table_rows.begun(phases.open(), places)
            sums, _, _ = phases.add(sums, phases.initial(), micro_batch, totals)
            tables.extend(table_rows.lists_in(sums))

        tf.function(add, autograph=False).get_concrete_function(micro_batch)
        return tables

    def _run_on_device(self, data, size, rows, table):
        phases = self._phases
        sums, loop_state, factor, scale = self._open()
        masses, order = None, phases.sorted(data, table)
        if phases.needs_masses:
            zeros = [tf.zeros((), loop_state.samples.dtype) for _ in loop_state.losses]
            masses = fold_samples(
                lambda masses, each: tf.nest.map_structure(
                    tf.add, masses, phases.measure(each.data)
                ),
                zeros,
                data,
                None,
                size,
                order,
                self._xla,
            )
        samples, masses, (place,) = phases.agreed([(data, None)], masses)
        # A loop would read a table for each micro-batch, which is a copy where rows are assigned.
        read = [
            tf.convert_to_tensor(weight.value) if i in self._tables else None
            for i, weight in enumerate(phases.weights)
        ]
        totals = BatchTotals(samples, masses, factor, scale, read if self._tables else None)
        loop_state = loop_state._replace(place=place)

        slopes = None
        samples = count(data)
        is_one = self._strategy is None and samples is not None and samples <= size
        if phases.cuts and not is_one:
            sums, loop_state, (slopes,) = self._cut_loss(
                sums, loop_state, data, size, order, totals
            )

        lists = table_rows.InLoop(sums, self._tables)

        def add(state, each):
            cut_here = None if slopes is None else Slopes(each.slopes, slopes.added)
            begun, loop_state, arrays = state
            begun_here = each.begun(loop_state, place)
            sums, ended, _ = phases.add(
                lists.sums(begun), begun_here, each.data, totals, slopes=cut_here
            )
            dense, arrays = lists.add(sums, arrays)
            return dense, each.ended(ended, place), arrays

        own = None if slopes is None else slopes.rows
        dense, arrays = lists.open()
        state = fold_samples(add, (dense, loop_state, arrays), data, own, size, order, self._xla)
        dense, loop_state, arrays = state
        # Metrics count samples, which are known at once: a batch that fails must not be counted.
        last = [tensor for tensor in tf.nest.flatten((dense, loop_state)) if tensor is not None]
        with tf.control_dependencies(last):
            return phases.finish(lists.close(dense, arrays), loop_state, rows)

    def _cut_loss(self, sums, loop_state, data, size, order, totals):
        """Run the samples forward, and the loss of all; return what `Phases.differentiate` does."""
        phases, specs, place = self._phases, self._phases.output_specs, loop_state.place

        def forward(state, each):
            number, ended, places, rows, added = state
            ended, part = phases.forward(each.begun(ended, place), each.data, totals.samples)
            own = part.rows if order is None else order.filled(part.rows)
            rows = [whole.write(number, leaf) for whole, leaf in zip(rows, own, strict=True)]
            if order is not None:
                places = places.write(number, each.places)
            added = [a + b for a, b in zip(added, part.added, strict=True)]
            return number + 1, each.ended(ended, place), places, rows, added

        rows = [table_rows.rows_array(dtype, shape) for shape, dtype in specs.rows]
        added = [tf.zeros((), dtype) for dtype in specs.added]
        places = table_rows.rows_array("int32", [])
        begun = (tf.constant(0), loop_state, places, rows, added)
        _, ended, places, rows, added = fold_samples(
            forward, begun, data, None, size, order, is_uniform=False
        )
        rows = [whole.concat() for whole in rows]
        if order is not None:
            back = tf.argsort(places.concat())
            rows = [tf.gather(leaf, back) for leaf in rows]
        batch = [BatchPart(data, BatchOutputs(rows, added), None)]
        return phases.differentiate(sums, loop_state, ended, batch, totals)


def _parts(leaf):
    """Return the parts of what a strategy has distributed over the replicas of this process."""
    return leaf.values if isinstance(leaf, tf.distribute.DistributedValues) else (leaf,)
