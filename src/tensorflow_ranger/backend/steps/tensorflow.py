"""TensorFlow: one graph with a loop in it, or one graph per micro-batch under XLA on CPU."""

from typing import Any

import keras
import tensorflow as tf

from tensorflow_ranger.backend.replicas.tensorflow import in_lockstep, strategy_of
from tensorflow_ranger.backend.steps.samples import count, cut, has_sparse, split
from tensorflow_ranger.backend.steps.tensorflow_workers import (
    trainer_overrides as trainer_overrides,
)
from tensorflow_ranger.backend.tensorflow import kept, squared_norm

KNOWS_MEMORY = False  # before a step has run


def default_loop(compiled):
    """Return "device" or "host": where the loop over micro-batches runs best."""
    # XLA's CPU runs a convolution inside a loop on one thread.
    return "host" if compiled and not tf.config.list_physical_devices("GPU") else "device"


def rows(leaf):
    """Return the number of samples that `leaf` of a batch gives to a replica at most."""
    parts = leaf.values if isinstance(leaf, tf.distribute.DistributedValues) else (leaf,)
    return max(part.shape[0] if len(part.shape) else -1 for part in parts)


def without_optionals(data):
    """Return `data` of an iterator with None for what is not there: an empty `tf.Optional`."""
    return keras.tree.map_structure(
        lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, data
    )


def make_step(passes, loop, compiled):
    """Return the step that runs `passes`."""
    return Step(passes, loop, compiled)


def current_values(variables):
    """Return pairs of the variables and the values an inner scope must be told: none."""
    return []


def add_gradients(share, passes, totals, factor):
    """Add the gradients of ``share(None)`` to the totals.

    Args:
        share: Function that returns ``(loss, aux)``; with several losses, loss is a list of them.
        passes: Object with `weights`, `losses`, `noise`, `accumulator`, and `has_gradient`, which
            is updated.
        totals: The accumulator's totals: one per weight, for each loss.
        factor: Scalar that gradients are multiplied by, or None.

    Returns:
        Tuple ``(totals, aux, square)``: square is the gradient's squared norm, or None unless
        `passes` measures noise.
    """
    weights = [weight.value for weight in passes.weights]
    with tf.GradientTape(persistent=passes.losses > 1) as tape:
        loss, aux = share(None)
    losses = tf.nest.flatten(loss)
    gradients = [gradient for each in losses for gradient in tape.gradient(each, weights)]
    passes.has_gradient = [gradient is not None for gradient in gradients]
    square = None
    if passes.noise is not None:
        square = squared_norm([gradient for gradient in gradients if gradient is not None])
    totals = [
        total if gradient is None else passes.accumulator.add(i, total, gradient, factor)
        for i, (total, gradient) in enumerate(zip(totals, gradients, strict=True))
    ]
    return totals, aux, square


def filled(totals, empty, like):
    """Return the totals, and an empty list: a trace knows which of them have gradients."""
    return totals, []


class Step:
    """Runs a batch: `run` returns the logs and None.

    The variables are assigned after the last micro-batch, so that a batch that fails has changed
    nothing.

    Args:
        passes: The functions of the batch.
        loop: "device" for one graph with a `tf.while_loop`; "host" for one graph per micro-batch,
            called from Python.
        compiled: True for XLA, False for a graph, None to run eagerly. Replicas, which meet within
            the step, run in a graph.
    """

    def __init__(self, passes, loop, compiled):
        self._passes = passes
        self._strategy: Any = strategy_of(passes.weights)
        if self._strategy is not None:
            compiled = False
        self._has_several_processes = in_lockstep(passes.weights)
        self._loop = loop
        self._xla = bool(compiled)
        self._runs_eagerly = compiled is None
        self._prepared = False

        def graph(function, **options):
            if compiled is None:
                return function
            return tf.function(function, jit_compile=bool(compiled), autograph=False, **options)

        self._graph = graph
        self._begin = graph(self._open)
        self._measure = graph(passes.measure)
        self._add = graph(self._add_micro_batch)
        self._finish = graph(passes.finish)
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
        if not self._prepared:
            self._prepare(data, size)
        if self._strategy is not None:
            self._for_size(self._run_on_replicas, size, rows)(data)
            return self._passes.model.get_metrics_result(), None
        if self._loop == "host" or self._passes.gathers or has_sparse(data):
            return self._run_on_host(data, size, rows), None
        return self._for_size(self._run_on_device, size, rows)(data), None

    def _for_size(self, function, size, rows):
        # A function for each size: of one that is traced again and again TensorFlow warns.
        key = size, rows
        if key not in self._per_size:
            self._per_size[key] = self._graph(
                lambda data: function(data, size, rows), reduce_retracing=not self._xla
            )
        return self._per_size[key]

    @property
    def is_settled(self):
        """Whether all is known that decides what the step computes."""
        return self._passes.is_settled

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self._passes.state.require_rows(samples)

    def _open(self):
        return self._passes.open(), self._passes.carry(), *self._passes.begin()

    def _add_micro_batch(self, totals, carry, data, whole):
        return self._passes.add(totals, carry, data, self._passes.whole(*whole))

    def _run_on_host(self, data, size, rows):
        totals, carry, factor, scale = self._begin()
        micro_batches = split(data, size)
        masses = None
        if self._passes.needs_masses:
            measured = [self._measure(micro_batch) for micro_batch in micro_batches]
            masses = tf.nest.map_structure(lambda *values: tf.add_n(values), *measured)
        whole = (tf.cast(count(data), carry["samples"].dtype), masses, factor, scale)
        outputs = []
        for micro_batch in micro_batches:
            totals, carry, output = self._add(totals, carry, micro_batch, whole)
            outputs.append(output)
        batch = (data, outputs) if self._passes.gathers else ()
        return self._finish(totals, carry, rows, *batch)

    def _run_on_replicas(self, data, size, rows):
        self._strategy.run(self._run_on_device, args=(data, size, rows))

    def _prepare(self, data, size):
        data = keras.tree.map_structure(_local, data)

        def prepare(micro_batch):
            self._passes.prepare(micro_batch, count(data))

        def probe(some):
            return self._graph(lambda data: self._passes.probe(data))(some)

        if self._runs_eagerly:
            with kept(self._passes.model):
                prepare(cut(data, 0, size))
        else:
            tf.function(prepare, autograph=False).get_concrete_function(cut(data, 0, size))
        with kept(self._passes.model):
            self._passes.examine(probe, None if self._has_several_processes else data, size)
        self._prepared = True

    def _run_on_device(self, data, size, rows):
        passes = self._passes
        totals, carry, factor, scale = self._open()
        masses = None
        if passes.needs_masses:
            zeros = [tf.zeros((), carry["samples"].dtype) for _ in carry["parts"]]
            masses = self._loop_over(
                lambda sums, part: tf.nest.map_structure(tf.add, sums, passes.measure(part)),
                zeros,
                data,
                size,
            )
        samples, masses = passes.agreed(passes.count(data), masses)
        whole = passes.whole(samples, masses, factor, scale)
        totals, carry = self._loop_over(
            lambda state, part: passes.add(*state, part, whole)[:2], (totals, carry), data, size
        )
        return passes.finish(totals, carry, rows)

    def _loop_over(self, body, carry, data, size):
        rows = tf.shape(next(leaf for leaf in keras.tree.flatten(data) if leaf is not None))[0]
        # XLA needs slices of one size: what remains then runs after the loop.
        end = rows - rows % size if self._xla else rows

        def step(start, carry):
            length = size if self._xla else tf.minimum(size, rows - start)
            return start + size, body(carry, cut(data, start, length))

        _, carry = tf.while_loop(
            lambda start, carry: start < end, step, (0, carry), parallel_iterations=1
        )
        if not self._xla or count(data) % size == 0:
            return carry
        return body(carry, cut(data, end, count(data) % size))


def _local(leaf):
    """Return the first replica's part of what a strategy has distributed."""
    return leaf.values[0] if isinstance(leaf, tf.distribute.DistributedValues) else leaf
