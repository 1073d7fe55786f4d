"""RangerOptimizer: any Keras optimizer, updated once per window of micro-batches."""

import functools
import inspect
import warnings
from typing import Any, SupportsIndex

import keras
from keras import ops

from tensorflow_ranger.accumulation.window import Window
from tensorflow_ranger.backend import arrays, replicas
from tensorflow_ranger.batch_size.noise_scale import MEMORY, NoiseEstimate
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.distribution.reduction import require_replicas
from tensorflow_ranger.optimizers import inner as inner_optimizers
from tensorflow_ranger.optimizers.accumulation_schedule import AccumulationSchedule
from tensorflow_ranger.optimizers.gradient_shaping import GradientShaping
from tensorflow_ranger.optimizers.norm_gauge import NormGauge
from tensorflow_ranger.optimizers.open_windows import TrainedVariables, others
from tensorflow_ranger.optimizers.saved import SavedOptimizer
from tensorflow_ranger.optimizers.slots import add_accumulator, array_of, whole_number
from tensorflow_ranger.optimizers.slow_weights import SlowWeights
from tensorflow_ranger.optimizers.window_gauges import WindowGauges
from tensorflow_ranger.optimizers.window_length import WindowLength
from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping
from tensorflow_ranger.rules.lookahead import Lookahead


@keras.saving.register_keras_serializable(package="tensorflow_ranger")
class RangerOptimizer(SavedOptimizer):
    """Updates once per window of micro-batches, with the window's mean gradient.

    Give `fit` the micro-batch that fits into memory, and let `accumulation_steps` of them make one
    update. The weights follow the trajectory of the large batch,

        G = (sum_k D_k g_k) / (sum_k D_k),

    where ``g_k`` is the mean gradient of micro-batch k and ``D_k`` its mass. `iterations`,
    learning-rate schedules, weight decay, clipping, moving averages and constraints belong to the
    inner optimizer and count updates, never micro-batches.

    A window may span epochs. What is left of one when `fit` ends is applied by
    `finalize_variable_values`, divided by its own mass. Saving in the middle of a window keeps it.

    Args:
        learning_rate: Float, `keras.optimizers.schedules.LearningRateSchedule` or callable. None
            takes the inner optimizer's default.
        momentum: Float; momentum of an inner optimizer that has one. None takes 0.9 for SGD, and
            the inner optimizer's default otherwise.
        accumulation_steps: Micro-batches per window: an integer >= 1, which may be assigned anew
            between updates; an `AccumulationSchedule`; or ``"auto"``, which follows the noise
            scale of the gradients: windows as long as the problem can use now.
        inner: The optimizer that makes the updates: a Keras identifier such as ``"adam"``, or a
            `keras.optimizers.Optimizer` instance.
        max_accumulation_steps: Integer >= 1 that ``"auto"`` does not go beyond. None takes 64.
        reduction: What the loss does with the samples of a micro-batch: ``"mean"``, or ``"sum"``,
            for which the window's gradient is the sum of the micro-batches' gradients.
        skip_nonfinite: Whether to leave out a micro-batch whose gradient holds an infinity or a
            NaN. `skipped_micro_batches` counts them, and the window waits for another instead.
        accumulator_dtype: Name of the floating dtype the sums are held in. None takes float32, or
            float64 for float64 variables.
        lookahead: A `Lookahead`, or None. Its slow weights follow every k updates.
        adaptive_clipping: An `AdaptiveGradientClipping` of the window's gradient, or None.
        centralize: Whether to subtract from each output unit's gradient its mean over the fan-in.
            `tag_fan_in` says of a model's variables which axes those are.
        evaluate_slow_weights: Whether the model is left on Lookahead's slow weights when `fit`
            ends.
        name: Name of the optimizer.
        **kwargs: Arguments of the inner optimizer (`weight_decay`, `clipnorm`, `use_ema`,
            `beta_1`, ...), if it is given as an identifier.

    Raises:
        ValueError: An argument is out of range; an inner argument is given beside an instance; the
            inner optimizer accumulates gradients or scales losses itself.
        TypeError: `inner` is neither an identifier nor an optimizer; `learning_rate` or `momentum`
            is one; `lookahead` or `adaptive_clipping` is something else.

    Example:
        >>> optimizer = RangerOptimizer(learning_rate=1e-3, inner="adam", accumulation_steps=8)
        >>> model.compile(optimizer=optimizer, loss="mse")
        >>> model.fit(x, y, batch_size=32)  # the weights of batch_size=256
    """

    def __init__(
        self,
        learning_rate: inner_optimizers.LearningRate | None = None,
        momentum: float | None = None,
        accumulation_steps: SupportsIndex | str | AccumulationSchedule = 4,
        inner: str | dict | keras.optimizers.Optimizer = "sgd",
        *,
        max_accumulation_steps: SupportsIndex | None = None,
        reduction: str = "mean",
        skip_nonfinite: bool = True,
        accumulator_dtype: str | None = None,
        lookahead: Lookahead | None = None,
        adaptive_clipping: AdaptiveGradientClipping | None = None,
        centralize: bool = False,
        evaluate_slow_weights: bool = False,
        name: str = "ranger_optimizer",
        **kwargs,
    ):
        inner_optimizer = inner_optimizers.resolve(
            inner,
            learning_rate,
            momentum,
            own=inspect.signature(RangerOptimizer).parameters,
            **kwargs,
        )
        if isinstance(inner_optimizer, RangerOptimizer):
            raise ValueError(
                "inner must not be a RangerOptimizer: got a window inside a window. "
                "Multiply their accumulation_steps and keep one."
            )
        super().__init__(inner_optimizer, name)
        self.reduction = arguments.reduction(reduction)
        self.skip_nonfinite = skip_nonfinite
        self.accumulator_dtype = arguments.accumulator_dtype(accumulator_dtype)
        self._steps = WindowLength(accumulation_steps, max_accumulation_steps, self._add_state)
        self._gauges = WindowGauges(self._add_state)
        if self._steps.follows_noise:
            self._gauges.measure_noise(is_open=False)
        self.lookahead = arguments.lookahead(lookahead)
        self.adaptive_clipping = arguments.adaptive_clipping(adaptive_clipping)
        self.centralize = bool(centralize)
        self.evaluate_slow_weights = arguments.evaluate_slow_weights(
            evaluate_slow_weights, self.lookahead
        )
        self._shaping = GradientShaping(self.adaptive_clipping, self.centralize)
        self._slow = None
        self._reported_skips = 0
        self._trained = TrainedVariables((), self._close_rest, self._warn_of_open_window)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of the window.

        Raises:
            ValueError: On assigning anything but an integer >= 1, or beside "auto" or a schedule.
        """
        return whole_number(self._steps.variable)

    @accumulation_steps.setter
    def accumulation_steps(self, value):
        self._steps.assign(value)

    @property
    def noise_scale(self) -> NoiseEstimate | None:
        """The `NoiseEstimate` of the windows so far, in units of mass; None if there is none."""
        gauge = self._gauges.noise
        return None if gauge is None else NoiseEstimate.of(array_of(gauge.averages))

    @property
    def pending_micro_batches(self) -> int:
        """Micro-batches in the unfinished window."""
        return whole_number(self._window.micro_batches) if self.built else 0

    @property
    def skipped_micro_batches(self) -> int:
        """Micro-batches left out because their gradient was not finite."""
        return whole_number(self._window.skipped_micro_batches) if self.built else 0

    def measure_noise(self, memory: int = MEMORY) -> bool:
        """Begin to measure the noise scale; return whether that is new, or `memory` is.

        It takes a pass over each gradient more. A step compiled before goes on as it did.

        Args:
            memory: Integer >= 1; windows that the averages reach back.
        """
        return self._gauges.measure_noise(self.pending_micro_batches > 0, memory)

    def measure_norms(self) -> NormGauge:
        """Return the gauge with which `GradientNorm` measures windows and micro-batches."""
        return self._gauges.measure_norms(self.inner_optimizer)

    def follow(self, schedule: AccumulationSchedule) -> bool:
        """Take the length of windows from an `AccumulationSchedule`; return whether that is new.

        A step compiled before does not follow it.

        Raises:
            ValueError: It is taken from something else already.
        """
        return self._steps.follow(schedule, self.iterations.value)

    def build(self, variables) -> None:
        """Create the window's and the inner optimizer's variables for `variables`."""
        if self.built:
            return
        require_replicas(variables := arguments.trained(variables))
        add = functools.partial(add_accumulator, self)
        self._window = Window(variables, add, self._add_state, self.accumulator_dtype)
        self._trained = TrainedVariables(variables, self._close_rest, self._warn_of_open_window)
        if self.lookahead is not None:
            self._slow = SlowWeights(self.lookahead, variables, self)
        super().build(variables)

    def apply(self, grads, trainable_variables=None, mass: Any = None) -> None:
        """Add one micro-batch's gradients to the window; update if that fills it.

        Args:
            grads: List of gradients of the micro-batch's mean loss (of its summed loss with
                ``reduction="sum"``). None stands for a variable the loss does not depend on.
            trainable_variables: List of the variables, in the order of `grads`. None takes those
                the optimizer was built with.
            mass: Number or scalar tensor >= 0; what the mean divided by: samples, the sum of
                sample weights, or unmasked tokens. None weighs all micro-batches alike. A tensor
                that turns out negative or not finite leaves the micro-batch out.

        Raises:
            TypeError: `grads` holds variables, or what is to be trained is none.
            ValueError: `grads` and the variables differ in number; a variable is unknown, or none
                has a gradient; `mass` is negative, not finite, or beside ``reduction="sum"``.
        """
        if len(grads) == 0:
            return
        if trainable_variables is not None and not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(list(trainable_variables))
        weighted = mass is not None
        mass = arguments.mass(mass, self.reduction)
        gradients = self._aligned(grads, trainable_variables)
        present = [gradient is not None for gradient in gradients]
        self._trained.add(gradients)
        with keras.name_scope(self.name, caller=self):
            held = mass if self._share == 1.0 else mass * self._share
            scale = self._loss_scale(weighted)
            added = self._window.add(gradients, held, scale, self.skip_nonfinite, self._agreed)
            self._gauges.add(gradients, held, self._share, scale, added)
            replicas.run_if(
                ops.greater_equal(self._window.micro_batches, self._steps.variable),
                lambda: self._close_window(present),
                self._updated_variables,
            )

    def apply_gradients(self, grads_and_vars, mass: Any = None) -> keras.Variable:
        """Call `apply` with ``(gradient, variable)`` pairs; return `iterations`.

        Args:
            grads_and_vars: Iterable of ``(gradient, variable)`` pairs.
            mass: As in `apply`.

        Raises:
            ValueError: As `apply` does.
        """
        grads, trainable_variables = zip(*grads_and_vars, strict=True)
        self.apply(grads, trainable_variables, mass=mass)
        return self.iterations

    def finalize_variable_values(self, var_list) -> None:
        """Apply what is left of the window, then finalize the inner optimizer.

        `fit` calls this when it ends, of the optimizer that the model is compiled with; a loop of
        your own should, too. The rest is divided by its own mass, not by that of a full window.
        Other `RangerOptimizer`s that train some of `var_list` close their windows, too.

        Args:
            var_list: List of the model's trainable variables.
        """
        self._close_rest()
        for other in others(var_list, self._trained):
            if self._trained.meet(other):
                other.warn()
            else:
                other.close()
        self.inner_optimizer.finalize_variable_values(var_list)
        if self.evaluate_slow_weights and self._slow is not None:
            self._slow.load(self._trained_variables)

    @property
    def _updated_variables(self):
        own = [*self._window.variables, *self._gauges.variables]
        own += [] if self._slow is None else self._slow.variables
        if not self._steps.is_fixed:
            own.append(self._steps.variable)
        return [*self._trained_variables, *own, *self.inner_optimizer.variables]

    def _add_state(self, name, shape, dtype):
        return self.add_variable(shape=shape, dtype=dtype, aggregation="none", name=name)

    def _close_window(self, present):
        self._merge(self._window, self._gauges.shares)
        seen = arrays.static_value(self._window.has_gradient.value)
        if seen is not None:
            self._update(list(seen))
        elif all(present) or not any(present):
            self._update([True] * len(present))
        else:
            # Which variables had a gradient earlier in the window is known only when this runs,
            # but a graph must fix which ones it updates: all of them if that loses nothing else.
            earlier = ops.any(ops.logical_and(self._window.has_gradient, ops.logical_not(present)))
            variables = self._updated_variables
            replicas.run_if(earlier, lambda: self._update([True] * len(present)), variables)
            replicas.run_if(ops.logical_not(earlier), lambda: self._update(present), variables)

    def _update(self, present):
        window, share = self._window, self._share
        means = window.mean(self.reduction, share)
        self._gauges.close_noise(means, window.mass.value, share, self.reduction == "sum")
        # A layer frozen in mid-window stays as it is, and what it had in the window is forgotten.
        pairs = [
            (mean if given else None, variable)
            for mean, given, variable in zip(means, present, self._trained_variables, strict=True)
            if variable.trainable
        ]
        if any(gradient is not None for gradient, _ in pairs):
            gradients, variables = zip(*pairs, strict=True)
            shaped = self._shaping.shaped(gradients, variables)
            self._gauges.close_norms(gradients, shaped, variables, window, self.reduction, share)
            # The window's sums are those of all replicas.
            with replicas.skip_reduction(self.inner_optimizer):
                self.inner_optimizer.apply(shaped, variables)
            if self._slow is not None:
                self._slow.follow(self.iterations.value, variables)
        self._window.reset()
        self._steps.advance(self.iterations.value, self._gauges.averages)

    def _close_rest(self):
        # After a step that failed, Keras on JAX has no values to go on with, and the error to show.
        if self.built and arrays.has_value(self._window.micro_batches):
            replicas.run_if(
                ops.greater(self._window.micro_batches, 0),
                lambda: self._close_window([False] * len(self._trained_variables)),
                self._updated_variables,
            )
            self._warn_of_skips()

    def _warn_of_open_window(self):
        # It may be in use beside the optimizer that is finalized, or one that was given up.
        if arrays.has_value(self._window.micro_batches) and self.pending_micro_batches:
            warnings.warn(
                f"The window of {self.name!r} stays open with {self.pending_micro_batches} "
                "micro-batch(es): another RangerOptimizer that trains the same variables was "
                "finalized. Call finalize_variable_values of this one to apply them.",
                stacklevel=4,
            )

    def _warn_of_skips(self):
        if arrays.static_value(self._window.skipped_micro_batches.value) is None:
            return  # a trace does not know the count
        skipped = self.skipped_micro_batches
        if skipped > self._reported_skips:
            warnings.warn(
                f"Left out {skipped - self._reported_skips} micro-batch(es) whose gradient or mass "
                "held an infinity or a NaN. Lower the learning rate, clip, or look for "
                "bad samples; optimizer.skipped_micro_batches counts them.",
                stacklevel=2,
            )
        self._reported_skips = skipped
