"""JAX: the gradient of a table of which rows were looked up, kept as a list of rows.

What a layer looks up is ``stop_gradient(rows) + d`` with d = 0, and the gradient by d is that of the
rows: no array of the size of the table. The list is a BCOO with a row for each look-up.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO

from tensorflow_ranger.backend import keras_internals


class ReadElsewhere(Exception):  # noqa: N818 (a finding, caught where it is looked for)
    """The loss depends on a table by more than what is looked up in it: `place` among the tables."""

    def __init__(self, place):
        super().__init__("A table was read in another way than when its model was examined.")
        self.place = place


class _Lookups:
    """Answers what layers look up in some tables.

    Args:
        tables: List of variables.
        added: For each table the arrays to add to what is looked up in it, or None for no array.
    """

    def __init__(self, tables, added=None):
        self._numbers = {id(table): number for number, table in enumerate(tables)}
        self._added = None if added is None else [iter(arrays) for arrays in added]
        #: For each table the shapes of what was looked up.
        self.shapes = [[] for _ in tables]
        #: For each table the places of what was looked up, those outside of it all behind its end.
        self.places = [[] for _ in tables]

    def __call__(self, function, table, indices):
        rows = function(table, indices)
        number = self._numbers.get(id(table))
        if number is None:
            return rows
        self.shapes[number].append(rows.shape)
        if self._added is None:
            return rows
        size = table.shape[0]
        places = jnp.asarray(indices).astype("int32").reshape(-1)
        places = jnp.where(places < 0, places + size, places)
        self.places[number].append(jnp.where(places < 0, size, places))
        return jax.lax.stop_gradient(rows) + next(self._added[number]).astype(rows.dtype)


class Seen:
    """The variables in which layers have looked something up."""

    def __init__(self):
        self._ids = set()

    def __call__(self, function, table, indices):
        self._ids.add(id(table))
        return function(table, indices)

    def __contains__(self, variable):
        return id(variable) in self._ids


def cut(share, weights, places, values):
    """Return `share` as a function of the rows that are looked up, and zeros to add to these.

    Args:
        share: Function of the values of `weights` that returns ``(loss, aux)``.
        weights: List of variables.
        places: Places of the tables among the weights.
        values: List of arrays; the values of the weights.

    Returns:
        Tuple ``(function, zeros)``. The function takes the values and arrays like the zeros, a list
        for each table, and returns ``(loss, (aux, indices))``.
    """
    tables = [weights[place] for place in places]
    lookups = _Lookups(tables)
    with keras_internals.looking_up_by(lookups):
        jax.eval_shape(share, values)
    zeros = [
        [jnp.zeros(shape, table.dtype) for shape in shapes]
        for table, shapes in zip(tables, lookups.shapes, strict=True)
    ]

    def function(values, added):
        values, lookups = list(values), _Lookups(tables, added)
        for place in places:
            values[place] = _unread(place, values[place])
        with keras_internals.looking_up_by(lookups):
            loss, aux = share(values)
        return loss, (aux, lookups.places)

    return function, zeros


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unread(place, value):
    """Return `value`, by which nothing is differentiated."""
    return value


def _raise(place, _, slope):
    raise ReadElsewhere(place)


_unread.defvjp(lambda place, value: (value, None), _raise)


def list_of(table, places, slopes):
    """Return the list of rows that was looked up in `table`, a variable."""
    rows = [slope.reshape(-1, *table.shape[1:]) for slope in slopes]
    nothing = jnp.zeros((0, *table.shape[1:]), table.dtype), jnp.zeros(0, "int32")
    rows, places = (
        jnp.concatenate([first, *each])
        for first, each in zip(nothing, (rows, places), strict=True)
    )
    return BCOO((rows, places[:, None]), shape=tuple(table.shape))


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
