"""Which optimizer trains a variable, to be found from the variable.

`fit` finalizes the optimizer that the model is compiled with, and no other. A model with a
`train_step` of its own may keep several, each for some of the model's variables.
"""

import weakref


class _Trainer:
    """The optimizer that trains a variable: not kept alive by it, and not copied with it."""

    def __init__(self, optimizer=None):
        self.optimizer = (lambda: None) if optimizer is None else weakref.ref(optimizer)

    def __reduce__(self):
        return _Trainer, ()


class TrainedVariables:
    """The variables that an optimizer has had a gradient for.

    Args:
        variables: List of the variables that the optimizer was built with.
    """

    def __init__(self, variables=()):
        self._variables = list(variables)
        self._places = frozenset()

    def add(self, gradients, optimizer):
        """Note that `optimizer` trains the variables that have a gradient.

        Args:
            gradients: List with one gradient, or None, per variable.
            optimizer: The optimizer, which takes the place of another that trained them before.
        """
        places = {i for i, gradient in enumerate(gradients) if gradient is not None}
        if places <= self._places:
            return
        self._places |= places
        trainer = _Trainer(optimizer)
        for place in self._places:
            self._variables[place]._trained_by = trainer

    def meet(self, other):
        """Return whether a variable is among these and among those of `other`."""
        return not self._ids.isdisjoint(other._ids)

    @property
    def _ids(self):
        return {id(self._variables[place]) for place in self._places}


def others(variables, optimizer):
    """Return the optimizers other than `optimizer` that train some of `variables`."""
    trainers = [getattr(variable, "_trained_by", _Trainer()) for variable in variables]
    found = {id(other): other for other in (trainer.optimizer() for trainer in trainers)}
    return [other for other in found.values() if other is not None and other is not optimizer]
