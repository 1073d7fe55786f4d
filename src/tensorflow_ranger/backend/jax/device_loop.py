"""JAX: a batch whose micro-batches a compiled function loops over."""

from typing import Any

import jax
import jax.numpy as jnp

from tensorflow_ranger.backend.batches import count
from tensorflow_ranger.backend.jax.sample_loops import fold_samples
from tensorflow_ranger.backend.phases import (
    BatchOutputs,
    BatchPart,
    BatchTotals,
    Slopes,
)


class DeviceLoop:
    """The part of a `JaxStep` that runs a batch as one function."""

    _phases: Any
    _scope: Any
    _state: Any

    def _run_parts(self, state, parts, size, rows):
        """Run the batch as one function.

        Args:
            state: As in `run`.
            parts: List of ``(data, weight)``: samples, and the weight of each on this replica:
                1/n if n replicas compute the same; None is 1.
            size: Samples per micro-batch.
            rows: As in `run`.
        """
        scope = self._scope(*state)
        with scope:
            phases = self._phases
            sums = phases.open()
            factor, scale = phases.begin()
            loop_state, masses = phases.initial(), None
            orders = [phases.sorted(data) for data, _ in parts]
            if phases.needs_masses:
                masses = [jnp.zeros((), loop_state.samples.dtype) for _ in loop_state.losses]
                for (data, weight), order in zip(parts, orders, strict=True):
                    masses = self._masses(masses, data, weight, size, order)
            samples, masses, places = phases.agreed(parts, masses)
            totals = BatchTotals(samples, masses, factor, scale)
            slopes = [None] * len(parts)
            if phases.cuts:
                sums, loop_state, slopes = self._cut_parts(
                    sums, loop_state, parts, orders, places, size, totals
                )
            for (data, weight), order, place, found in zip(
                parts, orders, places, slopes, strict=True
            ):

                def add(state, each, weight=weight, first=place, slopes=found):
                    sums, loop_state = state
                    cut_here = None if slopes is None else Slopes(each.slopes, slopes.added)
                    begun = each.begun(loop_state, first)
                    sums, ended, _ = phases.add(sums, begun, each.data, totals, weight, cut_here)
                    return sums, each.ended(ended, first)

                begun = sums, loop_state._replace(place=place)
                own = None if found is None else found.rows
                sums, loop_state = fold_samples(add, begun, data, own, size, order)
            logs = phases.finish(sums, loop_state, rows)
        return logs, self._state(scope)

    def _masses(self, masses, data, weight, size, order):
        """Return the masses with those of a part."""

        def add(masses, each):
            measured = self._phases.measure(each.data)
            return [
                total + (mass if weight is None else mass * weight)
                for total, mass in zip(masses, measured, strict=True)
            ]

        return fold_samples(add, masses, data, None, size, order)

    def _cut_parts(self, sums, loop_state, parts, orders, places, size, totals):
        """Run the parts forward, and the loss of all; return what `Phases.differentiate` does."""
        phases, specs, ended, found = self._phases, self._phases.output_specs, loop_state, []
        for (data, weight), order, place in zip(parts, orders, places, strict=True):
            rows = [jnp.zeros((count(data), *shape), dtype) for shape, dtype in specs.rows]
            added = [jnp.zeros((), dtype) for dtype in specs.added]

            def forward(state, each, weight=weight, first=place, order=order):
                start, loop_state, outputs = state
                begun = each.begun(loop_state, first)
                ended, part = phases.forward(begun, each.data, totals.samples, weight)
                rows = [
                    _written(whole, own, each, start)
                    for whole, own in zip(outputs.rows, _filled(order, part.rows), strict=True)
                ]
                added = [a + b for a, b in zip(outputs.added, part.added, strict=True)]
                ended = each.ended(ended, first)
                return start + count(each.data), ended, BatchOutputs(rows, added)

            ended = ended._replace(place=place)
            begun = (jnp.zeros((), "int32"), ended, BatchOutputs(rows, added))
            _, ended, outputs = fold_samples(forward, begun, data, None, size, order)
            found.append(BatchPart(data, outputs, weight))
        return phases.differentiate(sums, loop_state, ended, found, totals)


def _filled(order, rows):
    return rows if order is None else order.filled(rows)


def _written(whole, rows, micro_batch, start):
    """Return the rows of a batch with those of a micro-batch."""
    if micro_batch.places is None:
        return jax.lax.dynamic_update_slice_in_dim(whole, rows, start, 0)
    return whole.at[micro_batch.places].set(rows)
