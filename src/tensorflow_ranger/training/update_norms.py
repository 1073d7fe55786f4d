"""The norms of the gradients that a Keras optimizer is given."""

import contextlib
from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals, replicas
from tensorflow_ranger.checks.wrapped_optimizers import chain
from tensorflow_ranger.optimizers import clipped_norms
from tensorflow_ranger.rules import gradient_norms
from tensorflow_ranger.training.replaced_methods import methods_replaced
from tensorflow_ranger.training.step_statistics import StepStatistics


class _Norms(NamedTuple):
    """What one call of an optimizer's `apply` tells."""

    update: Any  #: Norm of the gradient of the update; any number where there is none yet.
    micro_batch: Any  #: Norm of the micro-batches' gradients, or the part that this one has of it.
    remaining: Any  #: Fraction of the norm that clipping leaves.
    closes: Any  #: Whether the call updates.


class UpdateNorms:
    """Adds up the norms of what the optimizer of a model is given.

    Where a step of `microbatch` calls the optimizer, it says so by `during_update`. A step of
    Keras, or one of the model's own, calls it within `during_training`, which looks at each call of
    `apply`. On JAX such a call has no place for what is found: `settle` assigns it after the step.

    Args:
        model: A compiled Keras model.
    """

    def __init__(self, model):
        self._model = model
        self._found = []
        self._totals = StepStatistics("gradient_norms", gradient_norms.SIZE)
        self._window = None
        self.has_seen = False  #: Whether the optimizer was called within `during_training`.
        keras_internals.add_metric(model, self._totals)

    def begin(self):
        """Begin to measure the optimizer that the model is compiled with."""
        if self._accumulating is None:
            return
        if self._window is None:
            self._window = StepStatistics("gradient_norms_of_window", 1)
            keras_internals.add_metric(self._model, self._window)
        optimizer = self._accumulating
        is_open = optimizer.built and keras_internals.is_accumulating(optimizer)
        self._window.values.assign([float("nan") if is_open else 0.0])

    def clear(self):
        """Begin to count updates anew."""
        self._totals.clear()

    def during_training(self):
        """Return a context in which each call of the optimizer is measured."""
        return gradients_observed(self._model.optimizer, self._observe)

    @contextlib.contextmanager
    def during_update(self, gradients, micro_batch_norm):
        """Return a context in which the optimizer is given the gradient of several micro-batches.

        Args:
            gradients: List of the gradients of the trainable variables; None where there is none.
            micro_batch_norm: Scalar, float32; mean norm of the micro-batches' gradients.
        """
        given, variables = self._given(gradients, self._model.trainable_variables)
        norm, left = clipped_norms.norm_of(given), self._remaining(given, variables)
        self._add(_Norms(norm, micro_batch_norm, left, True))
        yield

    def settle(self):
        """Assign what the optimizer's calls in a step on JAX have told."""
        for norms in self._found:
            self._add(norms)
        self._found = []

    def logs(self):
        """Return the means over the updates by the names they are logged under."""
        return gradient_norms.logs(self._totals.values.value, clipped_norms.clips(self._updater))

    @property
    def _updater(self):
        *_, innermost = chain(self._model.optimizer)
        return innermost

    @property
    def _accumulating(self) -> Any:
        """The optimizer that makes one update of several calls, or None.

        Raises:
            ValueError: It is one of several of a `MultiOptimizer`.
        """
        for each in getattr(self._updater, "optimizers", ()):
            if each.gradient_accumulation_steps:
                raise ValueError(
                    "GradientNorm measures updates of the whole model: got a MultiOptimizer with "
                    f"{type(each).__name__}(gradient_accumulation_steps="
                    f"{each.gradient_accumulation_steps}). Leave it out, and wrap the "
                    "MultiOptimizer in RangerOptimizer(inner=..., accumulation_steps=...)."
                )
        return self._updater if self._updater.gradient_accumulation_steps else None

    def _observe(self, gradients, variables):
        self.has_seen = True
        given, variables = self._given(gradients, variables)
        if self._accumulating is not None:
            norms = self._in_window(given, variables)
        elif keras_internals.strategy_of(self._model) is not None:
            norms = self._over_replicas(given, variables)
        else:
            norm = clipped_norms.norm_of(given)
            norms = _Norms(norm, norm, self._remaining(given, variables), True)
        if keras.config.backend() == "jax":
            self._found.append(norms)
        else:
            self._add(norms)

    def _given(self, gradients, variables):
        """Return the gradients that are there, without the loss' scale, and their variables."""
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        gradients, variables = zip(*pairs, strict=True)
        one = ops.ones((), "float32")
        scale = self._model.optimizer.scale_loss(one)
        if scale is not one:
            gradients = [ops.divide(gradient, scale) for gradient in gradients]
        return list(gradients), list(variables)

    def _remaining(self, gradients, variables):
        return clipped_norms.remaining(self._updater, gradients, variables)

    def _over_replicas(self, gradients, variables):
        """Return the norms of what replicas of TensorFlow sum, each its own clipped gradients."""
        own = clipped_norms.norm_of(gradients)
        clipped = []
        if clipped_norms.clips(self._updater):
            clipped = keras_internals.clipped(self._updater, gradients, variables)
        sums = replicas.sum_over([own, *gradients, *clipped])
        norm = clipped_norms.norm_of(sums[1 : len(gradients) + 1])
        left = ops.ones_like(norm)
        if clipped:
            after = clipped_norms.norm_of(sums[len(gradients) + 1 :])
            left = gradient_norms.remaining(norm, after)
        return _Norms(norm, sums[0], left, True)

    def _in_window(self, gradients, variables):
        """Return the norms of what Keras' own accumulation makes of several gradients."""
        optimizer = self._accumulating
        steps = optimizer.gradient_accumulation_steps
        sums, closes = keras_internals.accumulated(optimizer, variables)
        norm = clipped_norms.norm_of(gradients) / steps
        closes = ops.logical_and(closes, ops.isfinite(norm))

        def closed():
            pairs = zip(gradients, sums, strict=True)
            means = [(gradient + total) / steps for gradient, total in pairs]
            return clipped_norms.norm_of(means), self._remaining(means, variables)

        def still_open():
            return ops.zeros((), "float32"), ops.ones((), "float32")

        update, left = ops.cond(closes, closed, still_open)
        return _Norms(update, norm, left, closes)

    def _add(self, norms):
        totals, micro_batch = self._totals.values, norms.micro_batch
        if self._window is not None and self._accumulating is not None:
            window = self._window.values
            is_finite = ops.isfinite(micro_batch)
            micro_batch = window.value[0] + ops.where(is_finite, micro_batch, 0.0)
            window.assign(ops.where(norms.closes, 0.0, micro_batch)[None])
        added = gradient_norms.added(totals.value, norms.update, micro_batch, norms.remaining)
        totals.assign(ops.where(norms.closes, added, totals.value))


@contextlib.contextmanager
def gradients_observed(optimizer, observe):
    """Return a context in which each call of `optimizer` calls ``observe(gradients, variables)``.

    Its methods are replaced on this object, and are its own again where the context ends.

    Args:
        optimizer: A Keras optimizer.
        observe: Function that is called before the optimizer, with its variables' values in them.
    """
    own_apply, own_stateless_apply = optimizer.apply, optimizer.stateless_apply

    def apply(grads, trainable_variables=None, **settings):
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not optimizer.built:  # as Keras does in `apply`
                with keras.name_scope(optimizer.name, caller=optimizer):
                    optimizer.build(trainable_variables)
        if grads:
            observe(grads, trainable_variables or keras_internals.trained_variables(optimizer))
        own_apply(grads, trainable_variables, **settings)

    def stateless_apply(optimizer_variables, grads, trainable_variables, **settings):
        known = keras_internals.trained_variables(optimizer)
        variables = [*known, *optimizer.variables]
        values = [*trainable_variables, *optimizer_variables]
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            observe(list(grads), known)
        with methods_replaced(optimizer, apply=own_apply):
            return own_stateless_apply(optimizer_variables, grads, trainable_variables, **settings)

    with methods_replaced(optimizer, apply=apply, stateless_apply=stateless_apply):
        yield
