"""Ranger21: eight ideas of 2019 to 2021 around an AdamW core."""

import functools
import math
import operator

import keras
from keras import ops

from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.optimizers.family import FamilyOptimizer
from tensorflow_ranger.optimizers.gradient_shaping import unit_axes
from tensorflow_ranger.optimizers.inner import LearningRate
from tensorflow_ranger.optimizers.slots import add_slot
from tensorflow_ranger.rules import norm_loss, positive_negative_momentum, schedules
from tensorflow_ranger.rules.bias_correction import bias_correction
from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping, unit_norm
from tensorflow_ranger.rules.lookahead import Lookahead
from tensorflow_ranger.rules.unit_shaping import shaping

DEFAULT_LOOKAHEAD = Lookahead(k=5, alpha=0.5)
DEFAULT_CLIPPING = AdaptiveGradientClipping(clipping=0.01, epsilon=1e-3)


@keras.saving.register_keras_serializable(package="tensorflow_ranger")
class Ranger21(FamilyOptimizer):
    """The Ranger21 recipe, with every part on every variable.

    An update with the batch's gradients g, in this order:

    1. adaptive clipping, centralization, and normalization ``g / (std(g) + 1e-8)``;
    2. ``v <- beta_2 v + (1 - beta_2) g^2``;
    3. stable weight decay, ``w <- w (1 - eta_t weight_decay / sqrt(mean(v_hat)))``, with the mean
       over the elements of all variables;
    4. norm loss, ``w <- w (1 - 2 eta_t norm_loss (1 - 1 / |w_i|))`` for each output unit i;
    5. positive-negative momentum, ``w <- w - eta_t / (1 - beta_1^t) p / d``, with a direction
       p of two moving averages and ``d = softplus(sqrt(v_hat) + epsilon)``;
    6. Lookahead.

    The learning rate ``eta_t`` rises in a line for `warm_up_updates`, stays, and falls in a line
    from 72 % of `total_updates` on. Updates are counted, never micro-batches.

    It differs from the released code: weight decay and norm loss act on all variables (there the
    last one alone had them); a learning rate that a callback or a schedule sets is kept in the
    warm-down, which multiplies it; a fan-in is that of the layer, also in kernels of rank 3; where
    all gradients were zero nothing is divided by zero. AMSGrad is absent, as in effect it is there:
    its maximum is never stored. MADGRAD, AdaBelief and Chebyshev steps are not included.

    Args:
        learning_rate: Float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
        total_updates: Integer >= 1; updates of the training. Needed for the warm-down.
        beta_1: Float in [0, 1); decay rate of the first moment.
        beta_2: Float in (0, 1); decay rate of the second moment.
        epsilon: Float > 0, added to the root of the second moment, and to norms in the norm loss.
        weight_decay: Float >= 0; factor of the stable weight decay.
        positive_negative: Float >= 0; weight of the negative momentum. None takes one average of
            all gradients, as Adam does.
        paper_noise_norm: Whether to normalize the direction by the norm of (1 +
            `positive_negative`, `positive_negative`), as the paper does, and not by that of
            (1 + `beta_2`, `beta_2`), as the released code does.
        norm_loss: Float >= 0; factor of the norm loss. 0 switches it off.
        softplus: Float > 0; sharpness of the softplus of the denominator. None switches it off.
        normalize: Whether to divide each variable's gradient by its standard deviation.
        adaptive_clipping: An `AdaptiveGradientClipping`, or None.
        centralize: Whether to centralize gradients.
        lookahead: A `Lookahead`, or None.
        warm_up: Whether the learning rate rises at first.
        warm_up_updates: Integer >= 1, or None for ``2 / (1 - beta_2)``, or 22 % of
            `total_updates` if that is more than 45 % of them.
        warm_down: Whether the learning rate falls in the end.
        warm_down_start: Float in (0, 1); the share of `total_updates` after which it falls.
        least_learning_rate: Float >= 0; the learning rate at the end, if it began as
            `learning_rate`.
        evaluate_slow_weights: Whether the model is left on Lookahead's slow weights when `fit`
            ends.
        name: Name of the optimizer.
        **kwargs: `clipnorm`, `use_ema` and the other arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: An argument is out of range; `total_updates` is missing;
            `gradient_accumulation_steps` is given.
        TypeError: `lookahead` or `adaptive_clipping` is something else.

    Example:
        >>> optimizer = Ranger21(1e-3, total_updates=epochs * updates_per_epoch)
        >>> model.compile(optimizer=optimizer, loss="mse")

    References:
        Wright & Demeure, 2021. https://arxiv.org/abs/2106.13731
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        total_updates: int | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        weight_decay: float = 1e-4,
        positive_negative: float | None = 1.0,
        paper_noise_norm: bool = False,
        norm_loss: float = 1e-4,
        softplus: float | None = 50.0,
        normalize: bool = True,
        adaptive_clipping: AdaptiveGradientClipping | None = DEFAULT_CLIPPING,
        centralize: bool = True,
        lookahead: Lookahead | None = DEFAULT_LOOKAHEAD,
        warm_up: bool = True,
        warm_up_updates: int | None = None,
        warm_down: bool = True,
        warm_down_start: float = 0.72,
        least_learning_rate: float = 3e-5,
        evaluate_slow_weights: bool = False,
        name: str = "ranger21",
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            epsilon=epsilon,
            lookahead=lookahead,
            adaptive_clipping=adaptive_clipping,
            centralize=centralize,
            evaluate_slow_weights=evaluate_slow_weights,
            name=name,
            **kwargs,
        )
        self.beta_2 = arguments.fraction("beta_2", beta_2)
        self.stable_weight_decay = arguments.not_negative("weight_decay", weight_decay)
        self.positive_negative = None
        if positive_negative is not None:
            self.positive_negative = arguments.not_negative("positive_negative", positive_negative)
        self.paper_noise_norm = bool(paper_noise_norm)
        self.norm_loss = arguments.not_negative("norm_loss", norm_loss)
        self.softplus = None if softplus is None else arguments.positive("softplus", softplus)
        self.normalize = bool(normalize)
        self.total_updates = total_updates
        self.warm_up = bool(warm_up)
        self.warm_up_updates = warm_up_updates
        self.warm_down = bool(warm_down)
        self.warm_down_start = warm_down_start
        self.least_learning_rate = least_learning_rate
        self._share = self._make_schedule(learning_rate)

    def _make_schedule(self, learning_rate):
        """Return the function from the number of an update to its share of the learning rate."""
        total = None
        if self.total_updates is not None:
            total = arguments.count(
                "total_updates", self.total_updates, "It is the number of updates of the training."
            )
        warm_up = self._warm_up_length(total)
        if not self.warm_down:
            return lambda step, dtype: schedules.warm_up_and_down(step, warm_up, None, 1, 1, dtype)
        if total is None:
            raise ValueError(
                "warm_down needs total_updates: got None. Give the number of updates of the "
                "training, epochs times updates per epoch, or set warm_down=False."
            )
        start = max(1, int(arguments.fraction("warm_down_start", self.warm_down_start) * total))
        least = arguments.not_negative("least_learning_rate", self.least_learning_rate)
        # A schedule has a least learning rate of its own.
        share = (
            min(1.0, least / learning_rate)
            if isinstance(learning_rate, int | float) and learning_rate
            else 0.0
        )
        return lambda step, dtype: schedules.warm_up_and_down(
            step, warm_up, total, start, share, dtype
        )

    def _warm_up_length(self, total):
        if not self.warm_up:
            return 0
        if self.warm_up_updates is None:
            return schedules.default_warm_up(self.beta_2, total)
        return arguments.count(
            "warm_up_updates", self.warm_up_updates, "For no warm-up set warm_up=False."
        )

    def _build_slots(self, variables):
        names = ["odd_momentum", "even_momentum"]
        if self.positive_negative is None:
            names = ["momentum"]
        self._momentums = [[add_slot(self, v, name) for v in variables] for name in names]
        self._velocities = [add_slot(self, v, "velocity") for v in variables]

    def _update(self, gradients, variables, learning_rate):
        dtype = accumulator_dtype(keras.config.floatx())
        step = self.iterations.value + 1
        rate = ops.cast(learning_rate, dtype) * self._share(step, dtype)
        indices = [keras_internals.index_of(self, variable) for variable in variables]
        velocities = [self._velocities[index] for index in indices]
        fan_in = self._shaping.fan_in(variables)
        norms = [
            unit_norm(ops.cast(variable.value, velocity.dtype), unit_axes(variable, axes))
            for variable, velocity, axes in zip(variables, velocities, fan_in, strict=True)
        ]
        gradients = self._shaped(gradients, variables, norms, fan_in)
        arrays.blend_squares(velocities, gradients, 1.0 - self.beta_2)
        averages, weights = self._moved_averages(indices, gradients, step, dtype)
        correction = bias_correction(step, self.beta_2, dtype)
        decay = rate * self._stable_decay(velocities, correction, dtype)
        sharpness = 1.0 if self.softplus is None else self.softplus
        scale = rate / bias_correction(step, self.beta_1, dtype) * sharpness
        weights = [scale * weight for weight in weights]
        slope = sharpness / ops.sqrt(correction)
        factors = arrays.computed([self._shrinking(norm, decay, rate) for norm in norms])
        for variable, slots, velocity, factor in zip(
            variables, averages, velocities, factors, strict=True
        ):
            wide = velocity.dtype
            products = (s.value * ops.cast(w, wide) for s, w in zip(slots, weights, strict=True))
            direction = functools.reduce(operator.add, products)
            denominator = ops.sqrt(velocity.value) * ops.cast(slope, wide)
            denominator = denominator + sharpness * self.epsilon
            if self.softplus is not None:
                denominator = arrays.softplus(denominator)
            quotient = direction / denominator
            updated = ops.cast(variable.value, wide) * factor - quotient
            variable.assign(ops.cast(updated, variable.dtype))

    def _shaped(self, gradients, variables, norms, fan_in):
        """Return the gradients clipped, centralized and normalized, as far as these are on."""
        clipping = self.adaptive_clipping
        if clipping is None and not self.centralize and not self.normalize:
            return gradients
        maps = [
            shaping(
                gradient,
                unit_axes(variable, axes),
                clipping and functools.partial(clipping.factor, weight_norm=norm),
                self.centralize and bool(axes),
                self.normalize,
            )
            for gradient, variable, norm, axes in zip(
                gradients, variables, norms, fan_in, strict=True
            )
        ]
        return [
            factor * (gradient - shift)
            for gradient, (shift, factor) in zip(gradients, arrays.computed(maps), strict=True)
        ]

    def _moved_averages(self, indices, gradients, step, dtype):
        """Move an average of the gradients; return all averages and their weights."""
        averages = [[slots[index] for index in indices] for slots in self._momentums]
        if self.positive_negative is None:
            arrays.blend(averages[0], gradients, 1.0 - self.beta_1)
            weights = [ops.ones((), dtype)]
        else:
            factor = self.positive_negative
            noise = factor if self.paper_noise_norm else self.beta_2
            weights = positive_negative_momentum.weights(step, factor, noise, dtype)
            share = positive_negative_momentum.share(self.beta_1)
            for parity, slots in zip((1, 0), averages, strict=True):
                arrays.blend_where(slots, gradients, share, ops.equal(step % 2, parity))
        return zip(*averages, strict=True), weights

    def _stable_decay(self, velocities, correction, dtype):
        if not self.stable_weight_decay:
            return ops.zeros((), dtype)
        total = sum(ops.cast(ops.sum(velocity.value), dtype) for velocity in velocities)
        elements = sum(math.prod(velocity.shape) for velocity in velocities)
        root = ops.sqrt(total / correction / elements)
        moves = ops.cast(root > 0, dtype)
        return moves * self.stable_weight_decay / (root + (1.0 - moves))

    def _shrinking(self, norm, decay, rate):
        """Return the factor of each unit's weights by weight decay, then by norm loss."""
        # Where gradients vanish the decay would take off more than there is.
        factor = ops.relu(1.0 - ops.cast(decay, norm.dtype))
        if self.norm_loss:
            pull = norm_loss.shrinkage(factor * norm, self.norm_loss, self.epsilon)
            factor = factor * (1.0 - ops.cast(rate, norm.dtype) * pull)
        return factor

    def get_config(self) -> dict:
        """Return the arguments that make an optimizer like this one, without its state."""
        return {
            **super().get_config(),
            "total_updates": self.total_updates,
            "beta_2": self.beta_2,
            "weight_decay": self.stable_weight_decay,
            "positive_negative": self.positive_negative,
            "paper_noise_norm": self.paper_noise_norm,
            "norm_loss": self.norm_loss,
            "softplus": self.softplus,
            "normalize": self.normalize,
            "warm_up": self.warm_up,
            "warm_up_updates": self.warm_up_updates,
            "warm_down": self.warm_down,
            "warm_down_start": self.warm_down_start,
            "least_learning_rate": self.least_learning_rate,
        }
