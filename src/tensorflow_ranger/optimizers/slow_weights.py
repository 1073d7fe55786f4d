"""The variables of Lookahead."""

from keras import ops

from tensorflow_ranger.backend import arrays
from tensorflow_ranger.optimizers.slots import add_slot


class SlowWeights:
    """Slow weights, copies of the weights at first.

    Args:
        lookahead: A `Lookahead`.
        variables: List of the trainable variables.
        optimizer: The optimizer whose variables they are.
    """

    def __init__(self, lookahead, variables, optimizer):
        self._lookahead = lookahead
        self._places = {id(variable): place for place, variable in enumerate(variables)}
        self.variables = [
            add_slot(optimizer, variable, "slow", initializer=_value_of(variable))
            for variable in variables
        ]

    def reset(self, variables):
        """Make the slow weights copies of the weights."""
        _copy(variables, self.variables)

    def follow(self, updates, variables):
        """Let the slow weights follow if `updates` is a multiple of k.

        Args:
            updates: Integer scalar; the updates made.
            variables: List of the variables that were updated.
        """
        slow = [self.variables[self._places[id(variable)]] for variable in variables]

        def follow():
            arrays.blend(slow, [theta.value for theta in variables], self._lookahead.alpha)
            _copy(slow, variables)
            for theta in variables:
                if theta.constraint is not None:
                    theta.assign(theta.constraint(theta))

        due = ops.equal(updates % self._lookahead.k, 0)
        arrays.run_if(due, follow, [*slow, *variables])

    def load(self, variables):
        """Assign the slow weights to the weights."""
        _copy(self.variables, variables)


def _copy(sources, targets):
    for source, target in zip(sources, targets, strict=True):
        # Without a copy both would be one array on JAX, which can't be donated twice.
        target.assign(ops.copy(ops.cast(source.value, target.dtype)))


def _value_of(variable):
    # Keras on TensorFlow builds optimizers within a trace, where an assignment would be part of
    # the step, and where XLA takes no initializer that reads a variable.
    value = arrays.initial_value(variable)

    def initializer(shape, dtype):
        return ops.convert_to_tensor(value, dtype=dtype)

    return initializer
