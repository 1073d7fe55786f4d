"""Which optimizer trains a variable, to be found from the variable.

`fit` finalizes the optimizer that the model is compiled with, and no other. A model with a
`train_step` of its own may keep several, each for some of the model's variables.
"""

import weakref


class _Trainer:
    """What trains a variable: not kept alive by it, and not copied with it."""

    def __init__(self, trained=None):
        self.trained = (lambda: None) if trained is None else weakref.ref(trained)

    def __reduce__(self):
        return _Trainer, ()


class TrainedVariables:
    """The variables that an optimizer has had a gradient for.

    Args:
        variables: List of the variables that the optimizer was built with.
        close: Method of the optimizer that closes its window. It does not keep it alive.
        warn: Method of the optimizer that warns of a window that stays open.
    """

    def __init__(self, variables, close, warn):
        self._variables = list(variables)
        self._places = frozenset()
        self._close, self._warn = weakref.WeakMethod(close), weakref.WeakMethod(warn)

    def close(self):
        """Close the optimizer's window."""
        close = self._close()
        assert close is not None  # these live no longer than their optimizer
        close()

    def warn(self):
        """Warn of the optimizer's window if it is open."""
        warn = self._warn()
        assert warn is not None
        warn()

    def add(self, gradients):
        """Note that the optimizer trains the variables that have a gradient.

        Args:
            gradients: List with one gradient, or None, per variable. The optimizer takes the place
                of another that trained them before.
        """
        places = {i for i, gradient in enumerate(gradients) if gradient is not None}
        if places <= self._places:
            return
        self._places |= places
        trainer = _Trainer(self)
        for place in self._places:
            self._variables[place].trained_by = trainer

    def meet(self, other):
        """Return whether a variable is among these and among those of `other`."""
        return not self.ids.isdisjoint(other.ids)

    @property
    def ids(self):
        """The set of the variables' ids."""
        return {id(self._variables[place]) for place in self._places}


def others(variables, trained):
    """Return the `TrainedVariables` other than `trained` that have some of `variables`."""
    trainers = [getattr(variable, "trained_by", _Trainer()) for variable in variables]
    found = {id(other): other for other in (trainer.trained() for trainer in trainers)}
    return [other for other in found.values() if other is not None and other is not trained]
