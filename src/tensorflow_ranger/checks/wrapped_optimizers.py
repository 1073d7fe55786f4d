"""Optimizers that wrap others, such as `LossScaleOptimizer` and `RangerOptimizer`."""


def chain(optimizer):
    """Yield an optimizer and those that it wraps, from the outside in."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)
