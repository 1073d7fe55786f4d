"""The same optimizer for another effective batch: its learning rate and betas, rescaled."""

import math
import warnings
from typing import SupportsFloat

import keras
import numpy as np

from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.checks.wrapped_optimizers import chain

# No source derives the square root rule for these. A `beta_1` or `rho` among their settings is
# another thing than in Adam and RMSprop: Lion takes a sign, ScheduleFreeAdamW interpolates.
_NO_SQUARE_ROOT = (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Ftrl",
    "Lion",
    "Muon",
    "ScheduleFreeAdamW",
)


@keras.saving.register_keras_serializable(package="tensorflow_ranger")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule times a number.

    Args:
        schedule: `keras.optimizers.schedules.LearningRateSchedule`.
        factor: Float.
    """

    def __init__(self, schedule, factor):
        self.schedule = schedule
        self.factor = float(factor)

    def __call__(self, step):
        """Return the learning rate of update `step`."""
        return self.schedule(step) * self.factor

    def get_config(self):
        """Return the arguments that make a schedule like this one."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        """Return the schedule that `get_config` describes."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["factor"])


def rescale_for_batch(
    optimizer: keras.optimizers.Optimizer,
    from_batch: SupportsFloat,
    to_batch: SupportsFloat,
    rule: str = "sqrt",
) -> keras.optimizers.Optimizer:
    """Return a new optimizer of the same class with settings for another effective batch.

    A learning rate and betas tuned for one batch are wrong for another, in either direction: they
    count updates, and an update stands for more samples, with less noise. Each rule keeps something
    else the same, counted in samples. With ``kappa = to_batch / from_batch``:

    ``"sqrt"`` keeps the stochastic differential equation that the optimizer follows (Malladi et
    al. 2022), where the noise of the gradient outweighs its mean::

        learning_rate <- sqrt(kappa) learning_rate        1 - beta_1 <- kappa (1 - beta_1)
        epsilon       <- epsilon / sqrt(kappa)            1 - beta_2 <- kappa (1 - beta_2)

    For Adam and its kin (AdamW, Nadam, Adamax, Lamb, and any optimizer with these settings), and
    for RMSprop, whose `rho` is a beta. Keras adds RMSprop's `epsilon` inside the root, where
    ``epsilon / kappa`` is the same rule. A beta of 0 averages nothing, and stays. An optimizer
    without betas, such as SGD, gets the learning rate alone: Krizhevsky (2014) derives it from
    keeping the variance of a step, and reports that ``"linear"`` did better.

    ``"linear"`` keeps the displacement per sample under a gradient that changes slowly (Goyal et
    al. 2017), for SGD, with a warm-up where kappa is large::

        learning_rate <- kappa learning_rate

    ``"half-life"`` keeps the number of samples (of tokens, where their number per sample is the
    same) after which a squared gradient counts half (Marek et al. 2025), for language models with
    small batches. They keep `beta_1`, and find that the best learning rate changes more slowly than
    by ``"sqrt"``: here it is left alone, so tune it::

        beta_2 <- beta_2 ** kappa

    What the sources keep, every rule keeps: the `momentum` of SGD and RMSprop, clipping, and
    `weight_decay`. Keras multiplies the decay by the learning rate, once per update, so the decay
    per sample stays with ``"linear"``, and changes by ``1 / sqrt(kappa)`` with ``"sqrt"`` and by
    ``1 / kappa`` with ``"half-life"``. `ema_momentum` is kept, too.

    A learning-rate schedule is multiplied by the factor. It goes on counting updates, of which an
    epoch now has ``1 / kappa`` times as many: give it other steps yourself.

    Wrappers (`RangerOptimizer`, `keras.optimizers.LossScaleOptimizer`) get a rescaled inner
    optimizer and keep the rest, `accumulation_steps` included. Batches are effective batches:
    micro-batch times `accumulation_steps` times replicas.

    Args:
        optimizer: `keras.optimizers.Optimizer`, built or not. It is left as it is.
        from_batch: Integer >= 1; samples per update that `optimizer` was tuned for.
        to_batch: Integer >= 1; samples per update of the new one.
        rule: ``"sqrt"``, ``"linear"`` or ``"half-life"``.

    Returns:
        An optimizer without state, with the present learning rate as its start.

    Raises:
        TypeError: `optimizer` is no Keras optimizer.
        ValueError: A batch is no integer >= 1; the rule is unknown, is not made for the optimizer,
            or gives a beta that is not between 0 and 1 (``kappa (1 - beta) >= 1``, or so close to
            1 that it is 1 in the dtype Keras computes in); the learning rate is a function.

    Example:
        >>> optimizer = keras.optimizers.Adam(1e-3)  # tuned for batches of 256
        >>> optimizer = rescale_for_batch(optimizer, from_batch=256, to_batch=64)
        >>> round(float(optimizer.learning_rate), 6), round(optimizer.beta_1, 6)
        (0.0005, 0.975)

    References:
        - Malladi, Lyu, Panigrahi, Arora, "On the SDEs and Scaling Rules for Adaptive Gradient
          Algorithms", 2022, square root scaling rules of RMSprop and Adam.
        - Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.1.
        - Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
        - Marek et al., "Small Batch Size Training for Language Models", 2025.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"optimizer must be a keras.optimizers.Optimizer instance: got {optimizer!r}. "
            "Make one first, as keras.optimizers.Adam(1e-3) or keras.optimizers.get(name) do."
        )
    from_batch = _batch("from_batch", from_batch)
    to_batch = _batch("to_batch", to_batch)
    if not isinstance(rule, str) or rule not in _RULES:
        raise ValueError(
            f"rule must be one of {tuple(_RULES)}: got {rule!r}. "
            'Take "sqrt" for Adam, "linear" for SGD, "half-life" for small batches of tokens.'
        )
    if _excludes_from_weight_decay(optimizer):
        warnings.warn(
            "The new optimizer decays all weights: exclude_from_weight_decay is no part of a "
            "config. Call it again on what rescale_for_batch returns.",
            stacklevel=2,
        )
    return _rescaled(optimizer, from_batch, to_batch, rule)


def _rescaled(optimizer, from_batch, to_batch, rule):
    config = optimizer.get_config()
    if wrapped := getattr(optimizer, "inner_optimizer", None):
        name = "inner" if "inner" in config else "inner_optimizer"
        inner = _rescaled(wrapped, from_batch, to_batch, rule)
        config[name] = keras.saving.serialize_keras_object(inner)
    else:
        if "learning_rate" not in config:
            raise ValueError(
                f"rule={rule!r} needs an optimizer with a learning rate: got "
                f"{type(optimizer).__name__}. Rescale the optimizers it is made of, each by itself."
            )
        learning_rate = keras_internals.learning_rate_of(optimizer)
        if callable(learning_rate):  # as an object, for nobody need have registered its class
            config["learning_rate"] = learning_rate
        config.update(_RULES[rule](optimizer, config, from_batch, to_batch))
    return type(optimizer).from_config(config)


def _square_root(optimizer, config, from_batch, to_batch):
    if _is_any_of(optimizer, _NO_SQUARE_ROOT):
        raise ValueError(
            f'rule="sqrt" is derived for SGD, RMSprop and Adam: got {type(optimizer).__name__}. '
            'Take rule="linear" for the learning rate alone, or tune it for the new batch.'
        )
    kappa = to_batch / from_batch
    betas = [name for name in ("beta_1", "beta_2", "rho") if name in config]
    settings = {
        name: _kept_in_first_order(name, config[name], from_batch, to_batch)
        for name in betas
        if config[name]
    }
    if betas and config.get("epsilon") is not None:
        # The root of the second moment falls by sqrt(kappa), and what is added to it must, too.
        inside_the_root = isinstance(optimizer, keras.optimizers.RMSprop)
        settings["epsilon"] = config["epsilon"] / (kappa if inside_the_root else math.sqrt(kappa))
    return {**settings, **_multiplied(config, math.sqrt(kappa))}


def _linear(optimizer, config, from_batch, to_batch):
    return _multiplied(config, to_batch / from_batch)


def _half_life(optimizer, config, from_batch, to_batch):
    if "beta_2" not in config or _is_any_of(optimizer, ("Lion",)):
        raise ValueError(
            'rule="half-life" needs an optimizer whose beta_2 averages squared gradients, such as '
            f'Adam: got {type(optimizer).__name__}. Take rule="sqrt" or rule="linear".'
        )
    beta = config["beta_2"] ** (to_batch / from_batch)
    return {"beta_2": _below_one("beta_2", beta, from_batch, to_batch)}


_RULES = {"sqrt": _square_root, "linear": _linear, "half-life": _half_life}


def _kept_in_first_order(name, beta, from_batch, to_batch):
    """Return ``1 - kappa (1 - beta)``."""
    # Rounded, because 32 / (1 - 0.9) is 320.00000000000006, and a beta of 0 is none.
    largest = math.ceil(round(from_batch / (1 - beta), 6)) - 1
    if to_batch > largest:
        raise ValueError(
            f'rule="sqrt" has no valid {name} for to_batch={to_batch}: got {name}={beta} and '
            f"from_batch={from_batch}, for which the largest to_batch is {largest}. Take a smaller "
            f'to_batch, tune with a larger {name}, or take rule="linear" or rule="half-life".'
        )
    return _below_one(name, 1 - to_batch / from_batch * (1 - beta), from_batch, to_batch)


def _below_one(name, beta, from_batch, to_batch):
    # Keras divides by 1 - beta ** t, or multiplies with it, in the variables' dtype.
    dtype = accumulator_dtype(keras.config.floatx())
    if np.dtype(dtype).type(beta) >= 1:
        raise ValueError(
            f"{name} must be less than 1 in {dtype}: got {beta} for from_batch={from_batch} and "
            f"to_batch={to_batch}. Take a larger to_batch, or tune {name} for it."
        )
    return beta


def _multiplied(config, factor):
    """Return the learning rate of `config` times `factor`."""
    learning_rate = config["learning_rate"]
    if isinstance(learning_rate, ScaledSchedule):
        factor *= learning_rate.factor
        learning_rate = learning_rate.schedule
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        same = math.isclose(factor, 1, rel_tol=1e-12)
        return {"learning_rate": learning_rate if same else ScaledSchedule(learning_rate, factor)}
    if callable(learning_rate):
        raise ValueError(
            "learning_rate must be a number or a keras.optimizers.schedules.LearningRateSchedule: "
            f"got the function {learning_rate!r}. Make it a schedule, or rescale what it returns."
        )
    return {"learning_rate": learning_rate * factor}


def _batch(name, value):
    return arguments.count(
        name,
        value,
        "It is the number of samples of one update: micro-batch times accumulation_steps times "
        "replicas.",
    )


def _is_any_of(optimizer, names):
    # By name, because not every version of Keras has all of them.
    classes = tuple(getattr(keras.optimizers, name, type(None)) for name in names)
    return isinstance(optimizer, classes)


def _excludes_from_weight_decay(optimizer):
    *_, innermost = chain(optimizer)
    return keras_internals.skips_weight_decay(innermost)
