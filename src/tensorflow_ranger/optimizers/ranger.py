"""Ranger: gradient centralization, RAdam and Lookahead."""

import keras

from tensorflow_ranger.optimizers.inner import LearningRate
from tensorflow_ranger.optimizers.radam import RAdam
from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping
from tensorflow_ranger.rules.lookahead import Lookahead

DEFAULT_LOOKAHEAD = Lookahead(k=6, alpha=0.5)


@keras.saving.register_keras_serializable(package="tensorflow_ranger")
class Ranger(RAdam):
    """Gradient centralization, RAdam and Lookahead in one optimizer.

    The optimizer that fastai made known in 2019, with its defaults. Wrap it in `RangerOptimizer`,
    or train with `microbatch`, for batches that do not fit the memory: every part counts updates.

    Args:
        learning_rate: Float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
        beta_1: Float in [0, 1); decay rate of the first moment.
        beta_2: Float in (2/3, 1); decay rate of the second moment.
        epsilon: Float > 0, added to the root of the second moment.
        lookahead: A `Lookahead`, or None.
        adaptive_clipping: An `AdaptiveGradientClipping`, or None.
        centralize: Whether to subtract from each output unit's gradient its mean over the fan-in.
        evaluate_slow_weights: Whether the model is left on Lookahead's slow weights when `fit`
            ends.
        name: Name of the optimizer.
        **kwargs: As `RAdam` takes them.

    Raises:
        ValueError: As `RAdam` does.
        TypeError: `lookahead` or `adaptive_clipping` is something else.

    Example:
        >>> model.compile(optimizer=Ranger(1e-3), loss="mse")

    References:
        Wright, 2019. https://github.com/lessw2020/Ranger-Deep-Learning-Optimizer
        Its parts: Liu et al., 2020; Zhang et al., 2019; Yong et al., 2020.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta_1: float = 0.95,
        beta_2: float = 0.999,
        epsilon: float = 1e-5,
        *,
        lookahead: Lookahead | None = DEFAULT_LOOKAHEAD,
        adaptive_clipping: AdaptiveGradientClipping | None = None,
        centralize: bool = True,
        evaluate_slow_weights: bool = False,
        name: str = "ranger",
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            lookahead=lookahead,
            adaptive_clipping=adaptive_clipping,
            centralize=centralize,
            evaluate_slow_weights=evaluate_slow_weights,
            name=name,
            **kwargs,
        )
