"""From what a user writes as `inner` to the optimizer that makes the updates."""

import difflib
from collections.abc import Callable

import keras

from tensorflow_ranger.backend.frameworks import framework_of
from tensorflow_ranger.checks import arguments

# Arguments that an inner optimizer must do without, and what to suggest in their place.
_REPLACED = {"gradient_accumulation_steps": "accumulation_steps", "loss_scale_factor": None}

# What to write for names of optimizers that are not Keras'.
_OWN = {
    **{
        name.lower(): f"Give the optimizer itself: inner=tensorflow_ranger.{name}(...)."
        for name in ("RAdam", "Ranger", "Ranger21")
    },
    "lookahead": "Lookahead goes around it: lookahead=tensorflow_ranger.Lookahead().",
}

# What Keras' optimizers take as their learning rate.
LearningRate = float | keras.optimizers.schedules.LearningRateSchedule | Callable


def resolve(
    inner, learning_rate=None, momentum=None, *, own=(), **settings
) -> keras.optimizers.Optimizer:
    """Return the inner optimizer.

    Args:
        inner: Keras identifier (a name or a config) or `keras.optimizers.Optimizer` instance.
        learning_rate: As Keras' optimizers take it. None keeps the optimizer's default.
        momentum: Float. None takes 0.9 for ``"sgd"`` and else keeps the optimizer's default.
        own: Names of the wrapper's arguments, which are suggested for a misspelt one, too.
        **settings: Other arguments of the optimizer.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        TypeError: `inner` is neither an identifier nor an optimizer; `learning_rate` or `momentum`
            is one.
        ValueError: `inner` names no optimizer; an argument is given beside an instance or is
            unknown to the optimizer; the optimizer accumulates or scales losses itself.
    """
    for name, value in (("learning_rate", learning_rate), ("momentum", momentum)):
        if value is not None:
            settings[name] = _no_optimizer(name, value)
    if isinstance(inner, keras.optimizers.Optimizer):
        if settings:
            raise ValueError(
                f"{', '.join(sorted(settings))} cannot be given beside an optimizer instance: got "
                f"inner={type(inner).__name__}. Set it on the instance, or give inner by name."
                f"{_suggestion(settings, inner.get_config(), own)}"
            )
        optimizer = inner
    else:
        optimizer = _from_identifier(inner, settings, own)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "inner must not be a LossScaleOptimizer: put it outside, "
            "LossScaleOptimizer(RangerOptimizer(inner=...)), as Keras does by itself for float16."
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            "inner must not accumulate gradients itself: got gradient_accumulation_steps="
            f"{optimizer.gradient_accumulation_steps}. Leave it out and set accumulation_steps."
        )
    return optimizer


def _no_optimizer(name, value):
    is_class = isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    if is_class or isinstance(value, (str, keras.optimizers.Optimizer)):
        shown = repr(value) if isinstance(value, str) else f"the optimizer {_class_name(value)}"
        remedy = repr(value) if isinstance(value, str) else f"{_class_name(value)}(...)"
        raise TypeError(
            f"{name} must not be an optimizer: got {shown}. Give the optimizer that makes the "
            f"updates as inner={remedy}."
        )
    return value


def _class_name(value):
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _suggestion(settings, config, own):
    """Return a sentence with the arguments that unknown `settings` may stand for, or ""."""
    unknown = sorted(set(settings) - set(config) - set(own))
    known = sorted({*config, *own})
    matches = [difflib.get_close_matches(name, known, n=1) for name in unknown]
    nearest = [_REPLACED.get(match, match) for match, *_ in filter(None, matches)]
    names = " and ".join(filter(None, nearest))
    return f" Did you mean {names}?" if names else ""


def _remedy(identifier):
    if isinstance(identifier, type):
        return f"Make an instance of the class: {identifier.__name__}(...)."
    if framework_of(identifier) == "torch":
        return "An optimizer of PyTorch trains with accumulate_gradients, in your own loop."
    return "See keras.optimizers for both."


def _nearest(identifier):
    given = str(identifier).lower()
    if given in _OWN:
        return _OWN[given]
    names = [name.lower() for name in dir(keras.optimizers) if name[0].isupper()]
    matches = difflib.get_close_matches(given, names, n=1)
    return f"Did you mean {matches[0]!r}?" if matches else "See keras.optimizers for their names."


def _from_identifier(identifier, settings, own):
    if not isinstance(identifier, (str, dict)):
        raise TypeError(
            'inner must be a Keras identifier such as "adam", or a keras.optimizers.Optimizer '
            f"instance: got {arguments.shown(identifier)}. {_remedy(identifier)}"
        )
    try:
        default = keras.optimizers.get(identifier)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"inner must name a Keras optimizer: got {identifier!r}. {_nearest(identifier)}"
        ) from error
    if isinstance(identifier, str) and isinstance(default, keras.optimizers.SGD):
        settings = {"momentum": 0.9, **settings}
    config = default.get_config()
    unknown = sorted(set(settings) - set(config))
    if unknown:
        takes = ", ".join(sorted(set(config) - set(_REPLACED)))
        raise ValueError(
            f"{', '.join(unknown)} is no argument of the inner optimizer: got inner={identifier!r}."
            f"{_suggestion(settings, config, own) or f' It takes {takes}.'}"
        )
    return type(default).from_config({**config, **settings}) if settings else default
