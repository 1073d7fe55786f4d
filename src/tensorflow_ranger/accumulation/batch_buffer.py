"""Where the sum of one batch's micro-batches is held, when the whole batch is known beforehand.

The gradients that come here are already parts of the batch's gradient, ``dS_k/dw / D``: they only
have to be added. Totals are plain tensors, so that a compiled step may keep them where it likes.
"""

import keras
from keras import ops

from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import arrays


class BatchBuffer:
    """One array per variable, zero when the batch begins, given to the optimizer when it ends.

    Args:
        optimizer: The optimizer that makes the update.
        variables: List of the variables that are trained.
        dtype: Name of the arrays' dtype, or None for `accumulator_dtype`'s choice.
    """

    #: Places in `optimizer.variables` that hold the totals.
    slots = ()
    #: Whether a total may be the rows of a table that gradients name, one by one.
    takes_rows = True

    def __init__(self, optimizer, variables, dtype=None):
        self._optimizer = optimizer
        self._variables = variables
        self._dtypes = [keras.backend.standardize_dtype(v.dtype) for v in variables]
        self._total_dtypes = [accumulator_dtype(own, dtype) for own in self._dtypes]
        #: For each variable whether gradients have the dtype of their total: no cast to ask for.
        self._as_wide = [
            own == wide for own, wide in zip(self._dtypes, self._total_dtypes, strict=True)
        ]
        self._overwritten = [getattr(v, "overwrite_with_gradient", False) for v in variables]

    def beside_the_optimizer(self):
        """Return an accumulator that changes nothing until the batch ends: this one."""
        return self

    def open(self, index):
        """Return the total of no gradient for the variable at `index`."""
        return ops.zeros(self._variables[index].shape, self._total_dtypes[index])

    def factor(self):
        """Return what gradients are multiplied by when they are added: None, for 1."""

    def first(self, index, gradient, factor):
        """Return the total of the batch's first gradient for the variable at `index`."""
        if self._as_wide[index]:
            return gradient
        return ops.cast(gradient, self._total_dtypes[index])

    def add(self, index, total, gradient, factor):
        """Return ``total + gradient``, in the total's own memory where the backend can."""
        if self._overwritten[index]:
            # Such a "gradient" is the variable's next value (a float8 scale): Keras keeps the
            # largest of a window.
            return ops.maximum(total, ops.cast(gradient, total.dtype))
        return arrays.plus(total, gradient, factor)

    def close(self, totals):
        """Update the variables with the batch's gradient; a total may be None."""
        gradients = [
            total if total is None or as_wide else ops.cast(total, dtype)
            for total, dtype, as_wide in zip(totals, self._dtypes, self._as_wide, strict=True)
        ]
        arrays.apply(self._optimizer, gradients, self._variables)
