"""The optimizer of a run of ``tensorflow-ranger train``."""

from tensorflow_ranger.cli.errors import UsageError


def build(settings, total_updates):
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
    from tensorflow_ranger.optimizers.radam import RAdam
    from tensorflow_ranger.optimizers.ranger import Ranger
    from tensorflow_ranger.optimizers.ranger21 import Ranger21
    from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer
    from tensorflow_ranger.rules.lookahead import Lookahead

    ours = {"radam": RAdam, "ranger": Ranger, "ranger21": Ranger21}
    name = settings.optimizer.lower()
    learning_rate = {}
    if settings.learning_rate is not None:
        learning_rate = {"learning_rate": settings.learning_rate}
    added = {}
    if settings.lookahead:
        added["lookahead"] = Lookahead()
    if settings.centralize:
        added["centralize"] = True
    if name in ours:
        length = {"total_updates": total_updates} if name == "ranger21" else {}
        if settings.microbatch is not None:
            return ours[name](**learning_rate, **length, **added)
        inner, learning_rate = ours[name](**learning_rate, **length), {}
    else:
        inner = settings.optimizer
    try:
        optimizer = RangerOptimizer(
            accumulation_steps=settings.accumulation_steps, inner=inner, **learning_rate, **added
        )
    except (KeyError, TypeError, ValueError) as error:  # Keras' KeyError: one that wraps another
        raise UsageError(
            f"--optimizer must be {', '.join(ours)}, or name a Keras optimizer, such as sgd, adam "
            f"or adamw: got {settings.optimizer!r}"
        ) from error
    if settings.microbatch is not None and not added:
        return optimizer.inner_optimizer
    return optimizer
