"""JAX: pure compiled functions of the state, whose buffers are donated."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tensorflow_ranger.backend.jax import squared_norm
from tensorflow_ranger.backend.steps.jax_loop import adding, scan, shapes, temporaries_of
from tensorflow_ranger.backend.steps.samples import count, cut, has_sparse, split


def current_values(variables):
    """Return pairs of the variables and the values an inner scope must be told."""
    return [(variable, variable.value) for variable in variables]


def add_gradients(share, passes, totals, factor):
    """Add the gradients of ``share(weights)`` to the totals.

    Args:
        share: Function of the trainable variables' values that returns ``(loss, aux)``; with
            several losses, loss is a list of them.
        passes: Object with `weights`, `losses`, `noise` and `accumulator`.
        totals: The accumulator's totals: one per weight, for each loss.
        factor: Scalar that gradients are multiplied by, or None.

    Returns:
        Tuple ``(totals, aux, square)``: square is the gradient's squared norm, or None unless
        `passes` measures noise.
    """
    values = [weight.value for weight in passes.weights]
    if passes.losses == 1:
        gradients, aux = jax.grad(share, has_aux=True)(values) if values else ([], share(values)[1])
    else:
        gradients, aux = _gradients_apart(share, values)
    square = None if passes.noise is None else squared_norm(gradients)
    totals = [
        passes.accumulator.add(i, total, gradient, factor)
        for i, (total, gradient) in enumerate(zip(totals, gradients, strict=True))
    ]
    return totals, aux, square


def _gradients_apart(share, values):
    # One forward pass for all. The transpose of one output leaves out what others need, where a
    # pull-back of all of them would multiply it by zeros.
    losses, push_forward, aux = jax.linearize(share, values, has_aux=True)
    gradients = []
    for place, loss in enumerate(losses):
        pull_back = jax.linear_transpose(lambda t, place=place: push_forward(t)[place], values)
        gradients += pull_back(jnp.ones_like(loss))[0]
    return gradients, aux


def filled(totals, empty, like):
    """Return the totals, and an empty list: a trace knows which of them have gradients."""
    return totals, []


class JaxStep:
    """Runs a batch: `run` returns the logs and the next state.

    Args:
        passes: The functions of the batch.
        loop: "device" for one compiled function with a `lax.scan`; "host" for one compiled
            function per micro-batch, called from Python.
        compiled: Whether to compile at all.
    """

    def __init__(self, passes, loop, compiled):
        self._passes = passes
        self._loop = loop
        self._prepared = False
        model = passes.model
        self._trainable = passes.weights
        self._non_trainable = model.non_trainable_variables
        self._optimizer = model.optimizer.variables
        self._metrics = passes.metrics
        self._known = {}
        self._compiled = bool(compiled)
        self._begin: Any
        self._add: Any
        self._whole: Any
        if not compiled:
            self._begin, self._measure, self._add = self._open, self._weigh, self._add_part
            self._finish, self._whole = self._close, self._run_on_device
            return
        self._begin = jax.jit(self._open, donate_argnums=0)
        self._measure = jax.jit(self._weigh)
        self._add = jax.jit(self._add_part, donate_argnums=0)
        # Totals become the momentum where they live in it; elsewhere they end here.
        donated = (0, 1, 2) if passes.accumulator.slots else (0, 1)
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
        self._prepare(state, data, size)
        self._require_memory(state, data, size)
        if self._is_on_host(data):
            return self._run_on_host(state, data, size, rows)
        return self._whole(state, data, size, rows)

    def _is_on_host(self, data):
        # A compiled loop cuts arrays, and returns no outputs.
        return self._loop == "host" or self._passes.gathers or has_sparse(data)

    @property
    def is_settled(self):
        """Whether all is known that decides what the step computes."""
        return self._passes.is_settled

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self._passes.state.require_rows(samples)

    def _run_on_host(self, state, data, size, rows):
        trainable, non_trainable, optimizer, metrics = state
        data = jax.tree.map(np.asarray, data) if jax.default_backend() == "cpu" else data
        micro_batches = split(data, size)
        slots = self._passes.accumulator.slots
        held = [optimizer[slot] for slot in slots]
        optimizer = list(optimizer)
        for slot in slots:
            optimizer[slot] = None
        totals, carry, factor, scale = self._begin(held, optimizer, non_trainable, metrics)
        masses = None
        if self._passes.needs_masses:
            measured = [self._measure(trainable, non_trainable, m) for m in micro_batches]
            masses = jax.tree.map(lambda *values: sum(values), *measured)
        whole = (np.asarray(count(data), carry["samples"].dtype), masses, factor, scale)
        outputs = []
        for micro_batch in micro_batches:
            totals, carry, output = self._add(
                totals, carry, trainable, non_trainable, micro_batch, whole
            )
            outputs.append(output)
        batch = (data, outputs) if self._passes.gathers else (None, ())
        return self._finish(trainable, optimizer, totals, non_trainable, carry, rows, *batch)

    def _open(self, held, optimizer, non_trainable, metrics):
        with self._scope(optimizer=self._merged(optimizer, held)):
            totals = self._passes.open()
            factor, scale = self._passes.begin()
        with self._scope(non_trainable=non_trainable, metrics=metrics):
            return totals, self._passes.carry(), factor, scale

    def _weigh(self, trainable, non_trainable, data):
        metrics = [None] * len(self._metrics)
        with self._scope(trainable, non_trainable, metrics=metrics):
            return self._passes.measure(data)

    def _add_part(self, totals, carry, trainable, non_trainable, data, whole):
        with self._scope(trainable, non_trainable, metrics=carry["metrics"]):
            return self._passes.add(totals, carry, data, self._passes.whole(*whole))

    def _close(self, trainable, optimizer, totals, non_trainable, carry, rows, data, outputs):
        optimizer = self._merged(optimizer, totals if self._passes.accumulator.slots else ())
        scope = self._scope(trainable, non_trainable, optimizer, carry["metrics"])
        with scope:
            logs = self._passes.finish(totals, carry, rows, data, outputs)
        return logs, self._state(scope)

    def _run_on_device(self, state, data, size, rows):
        return self._run_parts(state, [(data, None)], size, rows)

    def _run_parts(self, state, parts, size, rows):
        """Run the batch as one function.

        Args:
            state: As in `run`.
            parts: List of ``(data, part)``: samples, and what of each of them counts here, or None
                for all of it.
            size: Samples per micro-batch.
            rows: As in `run`.
        """
        scope = self._scope(*state)
        with scope:
            passes = self._passes
            totals = passes.open()
            factor, scale = passes.begin()
            carry, masses = passes.carry(), None
            if passes.needs_masses:
                masses = [jnp.zeros((), carry["samples"].dtype) for _ in carry["parts"]]
                for data, part in parts:
                    masses = scan(adding(passes.measure, part), masses, data, size)
            samples = sum(count(data) * (part or 1.0) for data, part in parts)
            samples = jnp.asarray(samples, carry["samples"].dtype)
            whole = passes.whole(*passes.agreed(samples, masses), factor, scale)
            for data, part in parts:
                totals, carry = scan(
                    lambda state, micro_batch, part=part: passes.add(
                        *state, micro_batch, whole, part
                    )[:2],
                    (totals, carry),
                    data,
                    size,
                )
            logs = passes.finish(totals, carry, rows)
        return logs, self._state(scope)

    def temporaries(self, state, data, size):
        """Return the bytes XLA needs beside arguments and results, before anything runs."""
        return self._analysis(state, data, size)[0]

    def memory(self, state, data, size):
        """Return the bytes a batch needs in all: weights, optimizer, samples and temporaries."""
        return self._held(state, data) + sum(self._analysis(state, data, size))

    def _held(self, state, data):
        return sum(leaf.nbytes for leaf in jax.tree.leaves((state, data)))

    def _lowered(self, state, data, size):
        return self._whole.lower(state, data, size, count(data))

    def _analysis(self, state, data, size):
        key = (size, tuple(leaf.shape for leaf in jax.tree.leaves(data)))
        if key not in self._known:
            self._known[key] = self._analysed(state, data, size)
        return self._known[key]

    def _analysed(self, state, data, size):
        """Return the bytes of temporaries, and those of totals that live beside the state."""
        if not self._compiled:
            return 0, 0
        self._prepare(state, data, size)
        if not self._is_on_host(data):
            return temporaries_of(self._lowered(state, data, size)), 0
        trainable, non_trainable, optimizer, metrics = state
        held = [optimizer[slot] for slot in self._passes.accumulator.slots]
        totals, carry, factor, scale = jax.eval_shape(
            self._open, held, self._merged(optimizer, ()), non_trainable, metrics
        )
        first, masses = cut(data, 0, size), None
        if self._passes.needs_masses:
            masses = jax.eval_shape(self._weigh, trainable, non_trainable, first)
        whole = (carry["samples"], masses, factor, scale)
        lowered = self._add.lower(totals, carry, trainable, non_trainable, first, whole)
        extra = 0 if held else sum(math.prod(t.shape) * t.dtype.itemsize for t in totals)
        return temporaries_of(lowered), extra

    def _require_memory(self, state, data, size):
        # A compiled function that finds no memory has already given up what was donated to it:
        # ask before, while everything is still there.
        needed = self.temporaries(state, data, size)
        if jax.default_backend() == "cpu":
            # A call gets its temporaries while those of the call before are still there.
            calls = 2 if self._is_on_host(data) and size < count(data) else 1
            np.empty(calls * needed, "uint8")
            return
        stats = jax.devices()[0].memory_stats() or {}
        free = stats.get("bytes_limit", needed) - stats.get("bytes_in_use", 0)
        if needed > free:
            raise MemoryError(f"{needed} bytes are needed, {free} are free.")

    def _prepare(self, state, data, size):
        if self._prepared:
            return

        def prepare(state, data, samples):
            with self._scope(*state):
                self._passes.prepare(data, samples)

        def probe(state, data):
            with self._scope(*state):
                return self._passes.probe(data)

        if self._compiled:
            prepare = functools.partial(prepare, samples=count(data))
            jax.eval_shape(prepare, state, shapes(data, size))
        else:
            prepare(state, cut(data, 0, size), count(data))
        run = jax.jit(probe) if self._compiled else probe
        self._passes.examine(functools.partial(run, state), self._comparable(data), size)
        self._prepared = True

    def _comparable(self, data):
        """Return the batch as arrays of which a few samples can be cut, or None."""
        return data

    def _merged(self, optimizer, held):
        merged = list(optimizer)
        for slot, value in zip(self._passes.accumulator.slots, held, strict=False):
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
