"""Where the sum of one batch's micro-batches is held, when the whole batch is known beforehand.

The gradients that come here are already parts of the batch's gradient, ``dS_k/dw / D``: they only
have to be added. Totals are plain tensors, so that a compiled step may keep them where it likes.
"""

import keras
from keras import ops

from tensorflow_ranger import backend
from tensorflow_ranger.accumulation.accumulators import accumulator_dtype
from tensorflow_ranger.backend import keras_internals


class BatchBuffer:
    """One array per variable, zero when the batch begins, given to the optimizer when it ends.

    Args:
        optimizer: The optimizer that makes the update.
        variables: List of the variables that are trained.
        dtype: Name of the arrays' dtype, or None for `accumulator_dtype`'s choice.
    """

    #: Places in `optimizer.variables` that hold the totals.
    slots = ()

    def __init__(self, optimizer, variables, dtype=None):
        self._optimizer = optimizer
        self._variables = variables
        self._dtypes = [keras.backend.standardize_dtype(v.dtype) for v in variables]
        self._total_dtypes = [accumulator_dtype(own, dtype) for own in self._dtypes]
        self._overwritten = [getattr(v, "overwrite_with_gradient", False) for v in variables]

    def open(self, index):
        """Return the total of no gradient for the variable at `index`."""
        return ops.zeros(self._variables[index].shape, self._total_dtypes[index])

    def factor(self):
        """Return what gradients are multiplied by when they are added: None, for 1."""

    def first(self, index, gradient, factor):
        """Return the total of the batch's first gradient for the variable at `index`."""
        return ops.cast(gradient, self._total_dtypes[index])

    def add(self, index, total, gradient, factor):
        """Return ``total + gradient``, in the total's own memory where the backend can."""
        if self._overwritten[index]:
            # Such a "gradient" is the variable's next value (a float8 scale): Keras keeps the
            # largest of a window.
            return ops.maximum(total, ops.cast(gradient, total.dtype))
        return backend.plus(total, gradient, factor)

    def close(self, totals):
        """Update the variables with the batch's gradient; a total may be None."""
        gradients = [
            None if total is None else ops.cast(total, dtype)
            for total, dtype in zip(totals, self._dtypes, strict=True)
        ]
        backend.apply(self._optimizer, gradients, self._variables)


# Settings of Keras' SGD that make its update another function of the gradient.
_CHANGE_THE_GRADIENT = (
    "nesterov",
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


class MomentumFold:
    """No array at all: heavy-ball SGD's momentum holds the sum.

    The update ``v <- mu v - eta G, w <- w + v`` is linear in ``G = sum_k g_k``: scale v by mu when
    the batch begins, subtract ``eta g_k`` as gradients come, add v to w when the batch ends.

    Args:
        optimizer: A `keras.optimizers.SGD` for which `is_exact` holds.
        variables: List of the variables that are trained, which `optimizer` was built with.
    """

    def __init__(self, optimizer, variables):
        self._optimizer = optimizer
        self._variables = variables
        places = {id(variable): i for i, variable in enumerate(optimizer.variables)}
        self._momentums = [
            optimizer.momentums[keras_internals.index_of(optimizer, variable)]
            for variable in variables
        ]
        self.slots = tuple(places[id(momentum)] for momentum in self._momentums)

    @staticmethod
    def is_exact(optimizer, variables, dtype=None):
        """Return whether the momentum of `optimizer` may hold the sum.

        It may for SGD with heavy-ball momentum, if Keras does nothing to the gradient before the
        update, and the momentum is as wide as the sum is to be.

        Args:
            optimizer: Any Keras optimizer.
            variables: List of the variables that are trained.
            dtype: Name of the dtype of the sum, or None for `accumulator_dtype`'s choice.
        """
        # Keras makes its SGD a class of its own on PyTorch; a user's subclass may do anything.
        is_keras = type(optimizer).__module__.startswith("keras.")
        if not (is_keras and isinstance(optimizer, keras.optimizers.SGD) and optimizer.momentum):
            return False
        if any(getattr(optimizer, name) for name in _CHANGE_THE_GRADIENT):
            return False
        own = [keras.backend.standardize_dtype(variable.dtype) for variable in variables]
        return own == [accumulator_dtype(each, dtype) for each in own] and not any(
            getattr(variable, "overwrite_with_gradient", False) for variable in variables
        )

    def open(self, index):
        """Return ``mu v`` for the variable at `index`, in v's own memory where the backend can."""
        return backend.times(self._momentums[index], self._optimizer.momentum)

    def factor(self):
        """Return ``-eta``: what gradients are multiplied by when they are added."""
        return -ops.convert_to_tensor(self._optimizer.learning_rate)

    def first(self, index, gradient, factor):
        """Return the total of the batch's first gradient for the variable at `index`."""
        return self.add(index, self.open(index), gradient, factor)

    def add(self, index, total, gradient, factor):
        """Return ``total - eta gradient``, in the total's own memory where the backend can."""
        return backend.plus(total, gradient, factor)

    def close(self, totals):
        """Make the totals the momentum, and add it to the variables; a total may be None."""
        # Decay, moving averages, constraints and the count of updates stay Keras' own: only the
        # step in their middle, which knows a gradient and not a finished momentum, is ours.
        with keras_internals.update_step_replaced(self._optimizer, self._take_momentum):
            self._optimizer.apply(list(totals), self._variables)

    def _take_momentum(self, totals, variables, learning_rate):
        for total, variable in zip(totals, variables, strict=True):
            place = keras_internals.index_of(self._optimizer, variable)
            self._optimizer.momentums[place].assign(total)
            backend.add_scaled([variable], [total], 1.0, True)
