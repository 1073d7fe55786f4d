"""JAX: the gradient of a table of which rows were looked up, kept as a list of rows.

What a layer looks up is ``stop_gradient(rows) + d`` with d = 0, and the gradient by d is that of
the rows: no array of the size of the table. The list is a BCOO with a row for each look-up.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO

from tensorflow_ranger.backend import keras_internals, row_updates

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # before JAX 0.9
    from jax.core import get_opaque_trace_state


class ReadElsewhere(Exception):
    """The loss depends on the weight at `place`, a table, by more than what is looked up in it."""

    def __init__(self, place):
        super().__init__("A table was read in another way than when its model was examined.")
        self.place = place


class _Lookups:
    """Answers what layers look up in some tables.

    Args:
        weights: List of variables.
        tables: Places of the tables among them.
        added: For each table the arrays to add to what is looked up in it, or None for no array.
    """

    def __init__(self, weights, tables, added=None):
        self._places = {id(weights[place]): place for place in tables}
        self._added = None if added is None else dict(zip(tables, map(iter, added), strict=True))
        self._trace = get_opaque_trace_state()
        #: For each table the shapes of what was looked up.
        self.shapes = {place: [] for place in tables}
        #: For each table the indices of what was looked up, those outside of it behind its end.
        self.indices = {place: [] for place in tables}

    def __call__(self, function, table, indices):
        rows = function(table, indices)
        place = self._places.get(id(table))
        is_in_loop = self._trace != get_opaque_trace_state()  # out of which no indices come
        if place is None or is_in_loop:
            return rows
        self.shapes[place].append(rows.shape)
        if self._added is None:
            return rows
        size = table.shape[0]
        indices = jnp.asarray(indices).astype("int32").reshape(-1)
        indices = jnp.where(indices < 0, indices + size, indices)
        self.indices[place].append(jnp.where(indices < 0, size, indices))
        return jax.lax.stop_gradient(rows) + next(self._added[place]).astype(rows.dtype)


class Seen:
    """The variables in which layers have looked something up."""

    def __init__(self):
        self._ids = set()

    def __call__(self, function, table, indices):
        """Return what Keras' `function` looks up."""
        self._ids.add(id(table))
        return function(table, indices)

    def __contains__(self, variable):
        return id(variable) in self._ids


def tables_of(phases, seen, trace, parts):
    """Return the places of the weights whose gradients are lists of rows.

    These are tables of which a batch looks up no more rows than they have, and that are read in no
    other way.

    Args:
        phases: `Phases`.
        seen: `Seen` of a forward pass.
        trace: Function of such places that returns the sums of a micro-batch, as shapes.
        parts: Micro-batches of a batch.
    """
    optimizer = phases.model.optimizer
    if not phases.accumulator.takes_rows or phases.measures_gradients:
        return []
    tables = [
        place
        for place, weight in enumerate(phases.weights)
        if weight in seen and row_updates.leave_others(optimizer, weight)
    ]
    while tables:
        try:
            sums = trace(tables)
        except ReadElsewhere as read:
            tables.remove(read.place)
        else:
            return [i for i in tables if sums[i].nse * parts <= sums[i].shape[0]]
    return []


def cut(share, weights, tables, values) -> Any:
    """Return `share` as a function of the rows that are looked up, and zeros to add to these.

    Args:
        share: Function of the values of `weights` that returns ``(loss, aux)``.
        weights: List of variables.
        tables: Places of the tables among the weights.
        values: List of arrays; the values of the weights.

    Returns:
        Tuple ``(function, zeros)``. The function takes the values and arrays like the zeros, a list
        for each table, and returns ``(loss, (aux, indices))``.

    Raises:
        ReadElsewhere: A table is read in another way, too, or inside a loop.
    """

    def look(values):
        lookups = _Lookups(weights, tables)
        with keras_internals.looking_up_by(lookups):
            share(values)
        found.update(lookups.shapes)

    found = {}
    jax.eval_shape(look, values)
    zeros = [[jnp.zeros(shape, weights[i].dtype) for shape in found[i]] for i in tables]

    def function(values, added):
        values, lookups = list(values), _Lookups(weights, tables, added)
        for place in tables:
            values[place] = _unread(place, values[place])
        with keras_internals.looking_up_by(lookups):
            loss, aux = share(values)
        return loss, (aux, [lookups.indices[place] for place in tables])

    return function, zeros


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unread(place, value):
    """Return `value`, by which nothing is differentiated."""
    return value


def _raise(place, _, slope):
    raise ReadElsewhere(place)


_unread.defvjp(lambda place, value: (value, None), _raise)


def list_of(table, indices, slopes):
    """Return the list of rows that was looked up in `table`, a variable."""
    rows = [slope.reshape(-1, *table.shape[1:]) for slope in slopes]
    nothing = jnp.zeros((0, *table.shape[1:]), table.dtype), jnp.zeros(0, "int32")
    rows, indices = (
        jnp.concatenate([first, *each])
        for first, each in zip(nothing, (rows, indices), strict=True)
    )
    return BCOO((rows, indices[:, None]), shape=tuple(table.shape))


def is_list(total):
    """Return whether a gradient or a sum is a list of rows."""
    return isinstance(total, BCOO)


def parts(total):
    """Return the places of a list's rows in the table, and the rows."""
    return total.indices[:, 0], total.data


def summed(total):
    """Return a list that has each row of the table at most once, and as many rows as before."""
    return total.sum_duplicates(nse=total.nse)


def moved(sums, lists):
    """Return the sums with None for lists of rows, which are appended to those of their place."""
    sums = list(sums)
    for place, collected in lists.items():
        collected.append(sums[place])
        sums[place] = None
    return sums


def joined(sums, lists):
    """Return the sums with the list of all lists of rows at each of their places."""
    sums = list(sums)
    for place, collected in lists.items():
        places, rows = (jnp.concatenate(each) for each in zip(*map(parts, collected), strict=True))
        sums[place] = BCOO((rows, places[:, None]), shape=collected[0].shape)
    return sums


def rows_at(variable, places):
    """Return the rows of `variable` at these places, any rows for those behind its end."""
    return variable.value.at[places].get(mode="clip")


def add_rows(variable, places, rows):
    """Add to the rows of `variable` at these places, of which one may come twice."""
    variable.assign(variable.value.at[places].add(rows, mode="drop"))
