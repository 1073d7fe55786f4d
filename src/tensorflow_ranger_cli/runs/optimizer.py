"""The optimizer of a run of ``tensorflow-ranger train``."""

import inspect

from tensorflow_ranger_cli import spelling
from tensorflow_ranger_cli.errors import UsageError


def build_optimizer(settings, total_updates):
    """Return the optimizer that `settings` ask for.

    Where batches are cut by `microbatch` it is the plain one, as no window is needed: what makes
    the updates, with Lookahead and centralization of its own. Keras' optimizers have neither, so
    `RangerOptimizer` lends them both, its window closing after each batch.

    Args:
        settings: `Settings`.
        total_updates: Updates of the whole run.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        UsageError: The settings name no optimizer.
    """
    from tensorflow_ranger import Lookahead, RAdam, Ranger, Ranger21, RangerOptimizer

    ours = {"radam": RAdam, "ranger": Ranger, "ranger21": Ranger21}
    name = settings.optimizer.lower()
    arguments, added = {}, {}
    if settings.learning_rate is not None:
        arguments["learning_rate"] = settings.learning_rate
    if name == "ranger21":
        arguments["total_updates"] = total_updates
    if settings.lookahead:
        added["lookahead"] = Lookahead()
    if settings.centralize:
        added["centralize"] = True
    if name in ours and settings.microbatch is not None:
        return ours[name](**arguments, **added)
    if name in ours:
        inner = ours[name](**arguments)
    else:
        inner = _of_keras(settings.optimizer, arguments, ours)
    if settings.microbatch is not None and not added:
        return inner
    return RangerOptimizer(accumulation_steps=settings.accumulation_steps, inner=inner, **added)


def _of_keras(name, arguments, ours):
    import keras

    try:
        default = keras.optimizers.get(name)
        config = default.get_config()
        if isinstance(default, keras.optimizers.SGD):
            config["momentum"] = 0.9  # what RangerOptimizer takes for "sgd"
        return type(default).from_config({**config, **arguments})
    except (KeyError, TypeError, ValueError) as error:  # Keras' KeyError: one that wraps another
        raise UsageError(
            f"--optimizer must be {', '.join(ours)}, or name a Keras optimizer, such as sgd, adam "
            f"or adamw: got {name!r}{spelling.nearest(name, [*ours, *_names_of_keras()])}"
        ) from error


def _names_of_keras():
    import keras

    names = [name for name, _ in inspect.getmembers(keras.optimizers, inspect.isclass)]
    return [name.lower() for name in names if "Optimizer" not in name]  # bases and wrappers
