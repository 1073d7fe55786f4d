"""RAdam: Adam with a rectified start, with Lookahead and centralization if asked."""

import keras

from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.optimizers.family import FamilyOptimizer
from tensorflow_ranger.optimizers.inner import LearningRate
from tensorflow_ranger.optimizers.slots import add_slot
from tensorflow_ranger.rules import radam
from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping
from tensorflow_ranger.rules.lookahead import Lookahead


@keras.saving.register_keras_serializable(package="tensorflow_ranger")
class RAdam(FamilyOptimizer):
    """Adam that takes momentum steps until its denominator can be trusted.

    With ``m`` and ``v``, the moving averages of the gradient and of its square, update t is

        w <- w - eta r_t sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    where ``rho_t >= 5``, and ``w <- w - eta m / (1 - beta_1^t)`` before, with the rectifier ``r_t``
    and the length ``rho_t`` of the paper. Warm-up is not needed. Moments are float32 where the
    variables are narrower. Sparse gradients are made dense.

    Args:
        learning_rate: Float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
        beta_1: Float in [0, 1); decay rate of the first moment.
        beta_2: Float in (2/3, 1); decay rate of the second moment.
        epsilon: Float > 0, added to the root of the second moment.
        lookahead: A `Lookahead`, or None.
        adaptive_clipping: An `AdaptiveGradientClipping`, or None.
        centralize: Whether to subtract from each output unit's gradient its mean over the fan-in.
            `tag_fan_in` says of a model's variables which axes those are.
        evaluate_slow_weights: Whether the model is left on Lookahead's slow weights when `fit`
            ends.
        name: Name of the optimizer.
        **kwargs: `weight_decay` (decoupled), `clipnorm`, `use_ema` and the other arguments of
            `keras.optimizers.Optimizer`.

    Raises:
        ValueError: An argument is out of range; `gradient_accumulation_steps` is given.
        TypeError: `lookahead` or `adaptive_clipping` is something else.

    Example:
        >>> model.compile(optimizer=RAdam(1e-3, weight_decay=1e-2), loss="mse")

    References:
        Liu et al., 2020, Algorithm 2. https://arxiv.org/abs/1908.03265
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        lookahead: Lookahead | None = None,
        adaptive_clipping: AdaptiveGradientClipping | None = None,
        centralize: bool = False,
        evaluate_slow_weights: bool = False,
        name: str = "radam",
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
        radam.rectifier(1, beta_2)  # refuses a beta_2 that never rectifies
        self.beta_2 = float(beta_2)

    def _build_slots(self, variables):
        self._momentums = [add_slot(self, v, "momentum") for v in variables]
        self._velocities = [add_slot(self, v, "velocity") for v in variables]

    def _update(self, gradients, variables, learning_rate):
        gradients = self._shaping.shaped(gradients, variables)
        indices = [keras_internals.index_of(self, variable) for variable in variables]
        momentums = [self._momentums[index] for index in indices]
        velocities = [self._velocities[index] for index in indices]
        arrays.blend(momentums, gradients, 1.0 - self.beta_1)
        arrays.blend_squares(velocities, gradients, 1.0 - self.beta_2)
        scalars = radam.descent(
            self.iterations + 1,
            learning_rate,
            self.beta_1,
            self.beta_2,
            self.epsilon,
            accumulator_dtype(keras.config.floatx()),
        )
        arrays.descend(variables, momentums, velocities, *scalars)

    def get_config(self) -> dict:
        """Return the arguments that make an optimizer like this one, without its state."""
        return {**super().get_config(), "beta_2": self.beta_2}
