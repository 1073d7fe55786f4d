"""Where the sums of the tasks' gradients are held, and made into one."""

import itertools

from keras import ops
from keras.config import floatx

from tensorflow_ranger.accumulation.batch_buffer import BatchBuffer
from tensorflow_ranger.multitask import conflicts


class TaskBuffer(BatchBuffer):
    """One array per variable for each task, given to the optimizer as one gradient.

    Totals come task after task, and after the tasks one for what belongs to none of them, such as
    regularizers, if there is any. That is added to what the tasks combine to.

    Only shared weights are combined: those that two tasks or more have a gradient of. The others,
    such as an output's own layers, take the gradient of their task.

    Args:
        optimizer: The optimizer that makes the update.
        variables: List of the variables that are trained.
        tasks: `Tasks`.
        dtype: Name of the arrays' dtype, or None for `accumulator_dtype`'s choice.
    """

    takes_rows = False  # tasks' gradients are combined by their inner products

    def __init__(self, optimizer, variables, tasks, dtype=None):
        super().__init__(optimizer, variables, dtype)
        self._tasks = tasks

    def open(self, index):
        """Return the total of no gradient."""
        return super().open(self._place(index))

    def first(self, index, gradient, factor):
        """Return the total of the batch's first gradient."""
        return super().first(self._place(index), gradient, factor)

    def add(self, index, total, gradient, factor):
        """Return ``total + gradient``, in the total's own memory where the backend can."""
        return super().add(self._place(index), total, gradient, factor)

    def close(self, totals):
        """Update the variables with the tasks' gradients combined; a total may be None."""
        size = len(self._variables)
        rows = [totals[start : start + size] for start in range(0, len(totals), size)]
        count = len(self._tasks.groups)
        columns = list(zip(*rows, strict=True))
        # "Gradients" that are next values take no part.
        combined = [
            column[:count]
            for column, is_value in zip(columns, self._overwritten, strict=True)
            if not is_value
        ]
        squares, products = _inner_products(combined)
        gram, shared = _gram(squares, products, count)
        if self._tasks.statistics is not None:
            conflicts.observe(self._tasks.statistics.values, gram, _pair_squares(squares, gram))
        weights = ops.unstack(self._tasks.weights(gram), count)
        sums = iter(
            _weighted(column, weights, is_shared)
            for column, is_shared in zip(combined, shared, strict=True)
        )
        super().close(
            [
                _largest(column) if is_value else _plus(next(sums), column[count:])
                for column, is_value in zip(columns, self._overwritten, strict=True)
            ]
        )

    def _place(self, index):
        return index % len(self._variables)


def _inner_products(columns):
    """Return for each variable the squared norms and the inner products, by pairs of tasks."""

    def products(column, pairs):
        return {(i, j): ops.vdot(column[i], column[j]) for i, j in pairs}

    flat = [
        {task: ops.reshape(column[task], (-1,)) for task in _present(column)} for column in columns
    ]
    squares = [products(column, zip(column, column, strict=True)) for column in flat]
    return squares, [products(column, itertools.combinations(column, 2)) for column in flat]


def _gram(squares, products, count):
    """Return the Gram matrix over the shared variables, and which variables are shared."""
    found = (square for own in squares for square in own.values())
    zero = ops.zeros_like(next(found, ops.zeros((), floatx())))
    shared = []
    entries = dict.fromkeys(itertools.combinations_with_replacement(range(count), 2), zero)
    for own, between in zip(squares, products, strict=True):
        reached = sum((ops.cast(square > 0, "int32") for square in own.values()), 0)
        is_shared = reached > 1
        shared.append(is_shared if len(own) > 1 else None)
        if len(own) < 2:
            continue
        for pair, product in [*own.items(), *between.items()]:
            product = ops.where(is_shared, product, zero)
            entries[pair] = entries[pair] + ops.cast(product, zero.dtype)
    rows = [ops.stack([entries[min(i, j), max(i, j)] for j in range(count)]) for i in range(count)]
    return ops.stack(rows), shared


def _pair_squares(squares, gram):
    """Return at [i, j] the squared norm of task i's gradient over what task j reaches, too."""
    count, zero = gram.shape[0], ops.zeros_like(gram[0, 0])
    rows = [[zero] * count for _ in range(count)]
    for own in squares:
        for (i, _), (j, _) in itertools.permutations(own, 2):
            square = ops.where(own[j, j] > 0, own[i, i], ops.zeros_like(own[i, i]))
            rows[i][j] = rows[i][j] + ops.cast(square, zero.dtype)
    return ops.stack([ops.stack(row) for row in rows])


def _weighted(column, weights, is_shared):
    """Return a variable's combined gradient, or None if no task has one."""
    present = _present(column)
    if not present:
        return None
    if is_shared is None:
        return column[present[0]]
    total = None
    for task in present:
        gradient = column[task]
        weight = ops.cast(weights[task], gradient.dtype)
        part = gradient * ops.where(is_shared, weight, ops.ones_like(weight))
        total = part if total is None else total + part
    return total


def _plus(gradient, added):
    for term in added:
        if term is not None:
            gradient = term if gradient is None else gradient + term
    return gradient


def _largest(column):
    values = [value for value in column if value is not None]
    largest = values[0] if values else None
    for value in values[1:]:
        largest = ops.maximum(largest, value)
    return largest


def _present(column):
    return [task for task, gradient in enumerate(column) if gradient is not None]
