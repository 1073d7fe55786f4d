"""The variables of Lookahead."""

from keras import ops

from tensorflow_ranger import backend
from tensorflow_ranger.accumulation.accumulators import accumulator_dtype


class SlowWeights:
    """Slow weights, copies of the weights at first.

    Args:
        lookahead: A `Lookahead`.
        variables: List of the trainable variables.
        add_variable: Function ``(variable, name, dtype, initializer) -> variable`` that makes an
            optimizer's.
    """

    def __init__(self, lookahead, variables, add_variable):
        self._lookahead = lookahead
        self._places = {id(variable): place for place, variable in enumerate(variables)}
        self.variables = [
            add_variable(variable, "slow", accumulator_dtype(variable.dtype), _value_of(variable))
            for variable in variables
        ]

    def reset(self, variables):
        """Make the slow weights copies of the weights."""
        for slow, variable in zip(self.variables, variables, strict=True):
            slow.assign(ops.copy(ops.cast(variable.value, slow.dtype)))

    def follow(self, updates, variables):
        """Let the slow weights follow if `updates` is a multiple of k.

        Args:
            updates: Integer scalar; the updates made.
            variables: List of the variables that were updated.
        """
        slow = [self.variables[self._places[id(variable)]] for variable in variables]

        def follow():
            backend.blend(slow, [theta.value for theta in variables], self._lookahead.alpha)
            for phi, theta in zip(slow, variables, strict=True):
                theta.assign(ops.copy(ops.cast(phi.value, theta.dtype)))
                if theta.constraint is not None:
                    theta.assign(theta.constraint(theta))

        due = ops.equal(updates % self._lookahead.k, 0)
        backend.run_if(due, follow, [*slow, *variables])

    def load(self, variables):
        """Assign the slow weights to the weights."""
        for phi, theta in zip(self.variables, variables, strict=True):
            theta.assign(ops.copy(ops.cast(phi.value, theta.dtype)))


def _value_of(variable):
    # Keras on TensorFlow builds optimizers within a trace, where an assignment would be part of
    # the step, and where XLA takes no initializer that reads a variable.
    value = backend.initial_value(variable)

    def initializer(shape, dtype):
        return ops.convert_to_tensor(value, dtype=dtype)

    return initializer
