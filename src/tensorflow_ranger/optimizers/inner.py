"""From what a user writes as `inner` to the optimizer that makes the updates."""

import keras


def resolve(inner, learning_rate=None, momentum=None, **settings) -> keras.optimizers.Optimizer:
    """Return the inner optimizer.

    Args:
        inner: Keras identifier (a name or a config) or `keras.optimizers.Optimizer` instance.
        learning_rate: As Keras' optimizers take it. None keeps the optimizer's default.
        momentum: Float. None takes 0.9 for ``"sgd"`` and else keeps the optimizer's default.
        **settings: Other arguments of the optimizer.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        TypeError: `inner` is neither an identifier nor an optimizer.
        ValueError: `inner` names no optimizer; an argument is given beside an instance or is
            unknown to the optimizer; the optimizer accumulates or scales losses itself.
    """
    if learning_rate is not None:
        settings["learning_rate"] = learning_rate
    if momentum is not None:
        settings["momentum"] = momentum
    if isinstance(inner, keras.optimizers.Optimizer):
        if settings:
            raise ValueError(
                f"{', '.join(sorted(settings))} cannot be given beside an optimizer instance: got "
                f"inner={type(inner).__name__}. Set it on the instance, or give inner by name."
            )
        optimizer = inner
    else:
        optimizer = _from_identifier(inner, settings)
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


def _from_identifier(identifier, settings):
    if not isinstance(identifier, (str, dict)):
        raise TypeError(
            'inner must be a Keras identifier such as "adam", or a keras.optimizers.Optimizer '
            f"instance: got {identifier!r}. A class must be called first."
        )
    try:
        default = keras.optimizers.get(identifier)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"inner must name a Keras optimizer: got {identifier!r}. See keras.optimizers."
        ) from error
    if isinstance(identifier, str) and isinstance(default, keras.optimizers.SGD):
        settings = {"momentum": 0.9, **settings}
    config = default.get_config()
    unknown = sorted(set(settings) - set(config))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is no argument of the inner optimizer: got "
            f"inner={identifier!r}, which takes {', '.join(sorted(config))}."
        )
    return type(default).from_config({**config, **settings}) if settings else default
