"""The scope in which a micro-batch's forward pass runs: nothing is assigned, all is recorded."""

import contextvars
from typing import Any

import keras
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals

_current = contextvars.ContextVar("call_scope")


def lasting(model, assigned):
    """Return those of the `assigned` variables whose values Keras keeps after a step of `model`."""
    if arrays.KEEPS_ALL_ASSIGNMENTS:
        return list(assigned)
    kept = {id(v) for v in model.non_trainable_variables}
    return [v for v in assigned if id(v) in kept]


class CallScope(keras.StatelessScope):
    """A stateless scope that remembers which variables were assigned.

    A trained weight that a layer assigns goes on from the assigned value, and the gradient with
    respect to it is the weight's: that is what an assignment in place does. Nor is the value of any
    other assignment differentiated, but on JAX, where Keras' own steps do so.

    Args:
        mapping: Iterable of pairs of variables and the values they begin with.
        weights: Trained variables whose assignments are not differentiated.
        draws: `PlacedDraws` that answers what layers draw, or None for Keras' own.
    """

    def __init__(self, mapping, weights=(), draws=None):
        super().__init__(mapping, collect_losses=True)
        self._token: Any = None
        self._weights = {id(weight) for weight in weights}
        self._assigned = {}
        self.draws: Any = draws
        self._drawing = keras_internals.drawing_by(draws)

    def __enter__(self):
        super().__enter__()
        self._token = _current.set(self)
        self._drawing.__enter__()
        return self

    def __exit__(self, *error):
        _current.reset(self._token)
        self._drawing.__exit__(*error)
        super().__exit__(*error)

    @staticmethod
    def current():
        """Return the innermost scope that is open in this thread."""
        return _current.get()

    def begun_again(self, values):
        """Return a scope that is now as this one is, and in which what follows can be run apart.

        Args:
            values: Dict of values of variables by the variables' ids, which add to this scope's.
        """
        scope = CallScope((), (), None if self.draws is None else self.draws.begun_again())
        scope._weights = self._weights
        scope.state_mapping = {**self.state_mapping, **values}
        return scope

    @property
    def assigned(self):
        """The variables that were assigned, in order."""
        return list(self._assigned.values())

    def add_update(self, update):
        """Take the value that a variable is assigned."""
        variable, value = update
        self._assigned[id(variable)] = variable
        if id(variable) in self._weights:
            before = ops.cast(variable.value, value.dtype)
            value = ops.stop_gradient(value) + (before - ops.stop_gradient(before))
        elif arrays.KEEPS_ALL_ASSIGNMENTS:
            value = ops.stop_gradient(value)
        super().add_update((variable, value))
