"""What Keras' optimizers do not export. Read in Keras 3.12 to 3.15."""

import contextlib
from typing import Any

import keras


def trained_variables(optimizer):
    """Return the variables that `optimizer` was built with, an empty list before.

    ``BaseOptimizer.build`` keeps them as ``_trainable_variables``.
    """
    return optimizer._trainable_variables


def index_of(optimizer, variable):
    """Return the place of `variable` among those that `optimizer` was built with.

    ``BaseOptimizer._get_variable_index`` is how Keras' optimizers find the slots of a variable.
    """
    return optimizer._get_variable_index(variable)


def accumulator_of(optimizer, variable):
    """Return the sum of squares that an Adagrad keeps of the gradient of `variable`, or None.

    ``Adagrad.build`` keeps one for each variable in ``_accumulators``.
    """
    if not isinstance(optimizer, keras.optimizers.Adagrad):
        return None
    return optimizer._accumulators[index_of(optimizer, variable)]


def require_known(optimizer, variables):
    """Raise Keras' ValueError if `optimizer` was not built with all of `variables`."""
    optimizer._check_variables_are_known(variables)


def take_variables(optimizer, variables):
    """Let `optimizer` know `variables` as its own ``build`` would, and make no slots.

    Keras finds a variable's place in ``_trainable_variables_indices`` by ``_var_key``. The list is
    written past Keras' tracker, which would take the model's variables for the optimizer's own.
    """
    vars(optimizer)["_trainable_variables"] = list(variables)
    optimizer._trainable_variables_indices = {
        optimizer._var_key(variable): index for index, variable in enumerate(variables)
    }


def own_variables(optimizer):
    """Return the variables of `optimizer` without those that Keras gives to every optimizer.

    ``BaseOptimizer.__init__`` tracks ``_iterations`` and ``_learning_rate`` in ``_variables``.
    """
    given = (optimizer._iterations, optimizer._learning_rate)
    return [v for v in optimizer._variables if not any(v is other for other in given)]


def learning_rate_of(optimizer):
    """Return the learning rate as it was given: a `LearningRateSchedule`, a function or a variable.

    ``BaseOptimizer.learning_rate`` has the present number alone.
    """
    return optimizer._learning_rate


def skips_weight_decay(optimizer):
    """Return whether ``exclude_from_weight_decay`` was called with something.

    Keras keeps what it was called with in these two attributes, made by the first call.
    """
    names = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    return any(getattr(optimizer, name, None) for name in names)


def clipped(optimizer, gradients, variables):
    """Return a list of the gradients of `variables` as `optimizer` clips them before an update.

    ``BaseOptimizer._backend_apply_gradients`` calls ``_clip_gradients``. A `MultiOptimizer` gives
    each variable to the optimizer that its ``_optimizer_map`` names, which clips its own ones.
    """
    if not hasattr(optimizer, "_optimizer_map"):  # Keras 3.12 has no such class
        return optimizer._clip_gradients(gradients)
    groups = {}
    for place, variable in enumerate(variables):
        own = optimizer._optimizer_map(variable)
        groups.setdefault(id(own), (own, []))[1].append(place)
    found = [None] * len(gradients)
    for own, places in groups.values():
        parts = own._clip_gradients([gradients[place] for place in places])
        for place, part in zip(places, parts, strict=True):
            found[place] = part
    return found


def is_accumulating(optimizer):
    """Return whether an optimizer with ``gradient_accumulation_steps`` is between two updates.

    ``BaseOptimizer._backend_apply_gradients`` updates where ``_iterations + 1`` is a multiple of
    the steps.
    """
    steps = optimizer.gradient_accumulation_steps
    return int(keras.ops.convert_to_numpy(optimizer._iterations)) % steps != 0


def accumulated(optimizer, variables):
    """Return what an optimizer with ``gradient_accumulation_steps`` holds of `variables`.

    ``BaseOptimizer._backend_apply_gradients`` updates where ``_iterations + 1`` is a multiple of
    the steps, with the mean of its gradients and of those before, ``_accumulated_gradients``.

    Returns:
        Tuple ``(sums, closes)``: the variables of the sums, and whether the next call updates, a
        scalar bool.
    """
    sums = [optimizer._accumulated_gradients[index_of(optimizer, v)] for v in variables]
    return sums, (optimizer._iterations + 1) % optimizer.gradient_accumulation_steps == 0


@contextlib.contextmanager
def update_step_replaced(optimizer, update):
    """Inside, `optimizer` changes its variables by ``update(gradients, variables, rate)``.

    ``BaseOptimizer._backend_apply_gradients`` clips, decays, calls ``_backend_update_step``, and
    then moves the averages: only the middle is replaced, on this object. The scope gives the middle
    that was.
    """
    own = optimizer._backend_update_step
    optimizer._backend_update_step = update
    try:
        yield own
    finally:
        del optimizer._backend_update_step


@contextlib.contextmanager
def skip_reduction(optimizer):
    """Inside, `optimizer` takes gradients as sums over the replicas, on TensorFlow.

    There ``_all_reduce_sum_gradients`` sums them, and takes and returns pairs of gradients and
    variables.
    """
    own = vars(optimizer)
    before = own.get("_all_reduce_sum_gradients")
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    try:
        yield
    finally:
        own.pop("_all_reduce_sum_gradients", None)
        if before is not None:
            optimizer._all_reduce_sum_gradients = before


class JointUpdate(keras.optimizers.Optimizer):
    """An optimizer that updates all its variables in one call of ``_update_jointly``.

    ``BaseOptimizer._backend_update_step`` calls ``update_step`` for each variable, on TensorFlow
    after a sum over the replicas; overrides in Keras (PyTorch's) update many at a time, as here.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable."""
        self._backend_update_step([gradient], [variable], learning_rate)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if keras.config.backend() == "tensorflow":
            pairs = list(zip(grads, trainable_variables, strict=True))
            grads = [gradient for gradient, _ in self._all_reduce_sum_gradients(pairs)]
        self._update_jointly(grads, trainable_variables, learning_rate)

    def _update_jointly(self, grads, trainable_variables, learning_rate):
        raise NotImplementedError


class ShowsInnerAverages(keras.optimizers.Optimizer):
    """A wrapper of an optimizer, in which Keras finds the moving averages of the inner one.

    `SwapEMAWeights` looks for ``_model_variables_moving_average`` through no more than one
    wrapper, a `LossScaleOptimizer`.
    """

    inner_optimizer: Any

    @property
    def _model_variables_moving_average(self):
        return self.inner_optimizer._model_variables_moving_average
