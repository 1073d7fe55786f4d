"""JAX: what a step needs, known before it runs."""

from typing import Any

import jax
import numpy as np

from tensorflow_ranger.backend.batches import count, cut, split
from tensorflow_ranger.backend.jax.memory import bytes_of, shapes, temporaries_of
from tensorflow_ranger.backend.phases import BatchTotals, Slopes


class KnownMemory:
    """The part of a `JaxStep` that tells its memory."""

    _add: Any
    _compiled: bool
    _differentiate: Any
    _forward: Any
    _is_on_host: Any
    _known: dict
    _merged: Any
    _open: Any
    _phases: Any
    prepare: Any
    _tables: list
    _weigh: Any
    _whole: Any

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
        self.prepare(state, data, size)
        if not self._is_on_host(data, size):
            return temporaries_of(self._lowered(state, data, size)), 0
        trainable, non_trainable, optimizer, metrics = state
        held = [optimizer[slot] for slot in self._phases.accumulator.slots]
        sums, loop_state, factor, scale = jax.eval_shape(
            self._open, held, self._merged(optimizer, ()), non_trainable, metrics
        )
        first, masses = cut(data, 0, size), None
        if self._phases.needs_masses:
            masses = jax.eval_shape(self._weigh, trainable, non_trainable, first)
        totals = BatchTotals(loop_state.samples, masses, factor, scale)
        extra = 0 if held else bytes_of(sums)
        temporaries, slopes = 0, None
        if self._phases.cuts and size < count(data):
            parts = [
                self._forward.eval_shape(loop_state, trainable, non_trainable, m, totals.samples)[1]
                for m in split(data, size)
            ]
            arguments = sums, loop_state, loop_state, trainable, non_trainable, data, parts, totals
            temporaries = temporaries_of(self._differentiate.lower(*arguments))
            (found,) = self._differentiate.eval_shape(*arguments)[2]
            extra += bytes_of(parts) + 2 * bytes_of(found.rows)  # whole, and cut into micro-batches
            slopes = Slopes(shapes(found.rows, size), found.added)
        arguments = sums, loop_state, trainable, non_trainable, first, totals, slopes
        if self._tables:
            added = self._add.eval_shape(*arguments)[0]
            lists = bytes_of([added[place] for place in self._tables])
            extra += 4 * lists * -(-count(data) // size)  # as found, joined, in order and summed
        return max(temporaries, temporaries_of(self._add.lower(*arguments))), extra

    def _require_memory(self, state, data, size):
        # A compiled function that finds no memory has already given up what was donated to it:
        # ask before, while everything is still there.
        needed = self.temporaries(state, data, size)
        if jax.default_backend() == "cpu":
            # A call gets its temporaries while those of the call before are still there.
            calls = 2 if self._is_on_host(data, size) and size < count(data) else 1
            np.empty(calls * needed, "uint8")
            return
        stats = jax.devices()[0].memory_stats() or {}
        free = stats.get("bytes_limit", needed) - stats.get("bytes_in_use", 0)
        if needed > free:
            raise MemoryError(f"{needed} bytes are needed, {free} are free.")
