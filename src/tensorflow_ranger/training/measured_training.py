"""A train function of Keras that measures gradients beside training, for the length of a `fit`."""

import functools
from typing import Any

import keras

from tensorflow_ranger.training.model_state import attach, attached
from tensorflow_ranger.training.replaced_methods import methods_replaced

_NAME = "measured_training"


class MeasuredTraining:
    """Gives a model, between `begin` and `end`, a train function that logs norms of gradients.

    Both functions are kept: `fit` without norms goes on with the one that was compiled for it.

    Args:
        model: A compiled Keras model.
    """

    def __init__(self, model):
        self._model: Any = model
        self._norms: Any = None
        self._own_step: Any = None
        self._own_maker = self._plain = self._measured = None  # functions
        self._made_for = None  # the plain function, and the norms, of the measured one

    @staticmethod
    def of(model):
        """Return the one that makes the train function of `model`, or None.

        It does so during a `fit` that measures, and after one that has failed.
        """
        training = attached(model, _NAME)
        makes = vars(model).get("make_train_function")
        return training if training is not None and makes == training.make_train_function else None

    @staticmethod
    def given(model):
        """Return the one of `model`, which gets one if it has none."""
        if attached(model, _NAME) is None:
            attach(model, _NAME, MeasuredTraining(model))
        return attached(model, _NAME)

    def begin(self, norms):
        """Let the model's train function measure; `fit` has made one.

        Args:
            norms: `UpdateNorms`, or the `NormGauge` of the model's `RangerOptimizer`.
        """
        model = self._model
        self._norms, self._plain = norms, model.train_function
        self._own_step = model.train_step
        if self._made_for != (self._plain, norms):
            with methods_replaced(model, train_step=self._train_step):
                model.make_train_function(force=True)
            self._measured = functools.partial(self._run, model.train_function)
            self._made_for = self._plain, norms
        model.train_function = self._measured
        self._own_maker = vars(model).get("make_train_function")
        vars(model)["make_train_function"] = self.make_train_function

    def end(self):
        """Let the model train as before."""
        model = self._model
        if MeasuredTraining.of(model) is self:
            del vars(model)["make_train_function"]
            if self._own_maker is not None:
                vars(model)["make_train_function"] = self._own_maker
            if model.train_function is self._measured:
                model.train_function = self._plain

    def make_train_function(self, force=False):
        """End, and make the train function: `fit` begins, and the last one has failed."""
        self.end()
        self._model.make_train_function(force)

    def _run(self, function, *arguments):
        replaced = methods_replaced(self._model, train_step=self._train_step)
        with replaced, self._norms.during_training():
            return function(*arguments)

    def _train_step(self, *arguments):
        model, norms = self._model, self._norms
        if keras.config.backend() != "jax":
            logs = self._own_step(*arguments)
            return {**logs, **norms.logs()}
        logs, state = self._own_step(*arguments)
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        values = zip(groups, state, strict=True)
        mapping = [pair for group, own in values for pair in zip(group, own, strict=True)]
        with keras.StatelessScope(mapping) as scope:
            norms.settle()
            logs = {**logs, **norms.logs()}
        return logs, tuple([scope.get_current_value(v) for v in group] for group in groups)
