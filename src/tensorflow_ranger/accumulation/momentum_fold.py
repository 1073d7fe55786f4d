"""The sum of one batch's micro-batches in the optimizer's own momentum."""

import keras
from keras import ops

from tensorflow_ranger.accumulation.batch_buffer import BatchBuffer
from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import arrays, keras_internals

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

    takes_rows = False  # the momentum is dense, and SGD adds rows up

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
        if not MomentumFold.is_linear(optimizer):
            return False
        own = [keras.backend.standardize_dtype(variable.dtype) for variable in variables]
        return own == [accumulator_dtype(each, dtype) for each in own] and not any(
            getattr(variable, "overwrite_with_gradient", False) for variable in variables
        )

    @staticmethod
    def is_linear(optimizer):
        """Return whether `optimizer` is Keras' heavy-ball SGD and changes no gradient before."""
        # Keras makes its SGD a class of its own on PyTorch; a user's subclass may do anything.
        is_keras = type(optimizer).__module__.startswith("keras.")
        if not (is_keras and isinstance(optimizer, keras.optimizers.SGD) and optimizer.momentum):
            return False
        return not any(getattr(optimizer, name) for name in _CHANGE_THE_GRADIENT)

    def beside_the_optimizer(self):
        """Return an accumulator that leaves the momentum alone until the batch ends."""
        return BatchBuffer(self._optimizer, self._variables)

    def open(self, index):
        """Return ``mu v`` for the variable at `index`, in v's own memory where the backend can."""
        return arrays.times(self._momentums[index], self._optimizer.momentum)

    def factor(self):
        """Return ``-eta``: what gradients are multiplied by when they are added."""
        return -ops.convert_to_tensor(self._optimizer.learning_rate)

    def first(self, index, gradient, factor):
        """Return the total of the batch's first gradient for the variable at `index`."""
        return self.add(index, self.open(index), gradient, factor)

    def add(self, index, total, gradient, factor):
        """Return ``total - eta gradient``, in the total's own memory where the backend can."""
        return arrays.plus(total, gradient, factor)

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
            arrays.add_scaled([variable], [total], 1.0, True)
