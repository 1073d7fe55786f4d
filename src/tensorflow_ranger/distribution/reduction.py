"""One sum over the replicas per update, and what has to be agreed on before and after it.

The gradients of a window stay with the replica that found them until the window is complete. Then
everything that differs among the replicas crosses them together.
"""

import contextlib

from keras import ops

from tensorflow_ranger.backend import replicas
from tensorflow_ranger.checks.wrapped_optimizers import chain

_MERGED = "tensorflow_ranger.gradients_are_merged"  # the key by which an optimizer is told


def require_replicas(variables):
    """Raise if replicas were asked for that do not train `variables` together.

    Raises:
        RuntimeError: Each process would train a model of its own.
    """
    mismatch = replicas.mismatch(variables)
    if mismatch is not None:
        raise RuntimeError(mismatch)


def on_all_replicas(flag):
    """Return whether the scalar bool `flag` holds on every replica."""
    if replicas.count() == 1:
        return flag
    failures = replicas.sum_over([ops.cast(ops.logical_not(flag), "int32")])[0]
    return ops.equal(failures, 0)


def require_alike(weights):
    """Raise if the replicas hold different values of the variables `weights`.

    Raises:
        RuntimeError: They do.
    """
    if replicas.count() > 1 and not replicas.are_alike(weights):
        raise RuntimeError(
            "The processes train different weights. Call keras.utils.set_random_seed with one seed "
            "in all of them before the model is built, or load the same file in all of them."
        )


def merge_window(window, shares=()):
    """Replace a window's sums, its mass and its flags by those of all replicas.

    Args:
        window: A `Window` that is complete on every replica.
        shares: More variables of which each replica has a share.
    """
    if replicas.count() == 1:
        return
    variables = [*window.shares, *shares, window.has_gradient]
    values = [
        ops.cast(v.value, window.mass.dtype) if v.dtype == "bool" else v.value for v in variables
    ]
    for variable, value in zip(variables, replicas.sum_over(values), strict=True):
        variable.assign(ops.greater(value, 0) if variable.dtype == "bool" else value)


@contextlib.contextmanager
def merged_gradients(optimizer):
    """Inside, `optimizer` is given gradients that are summed over the replicas already."""
    optimizers = list(chain(optimizer))
    with contextlib.ExitStack() as stack:
        for each in optimizers:
            stack.enter_context(replicas.skip_reduction(each))
            vars(each)[_MERGED] = True
        try:
            yield
        finally:
            for each in optimizers:
                vars(each).pop(_MERGED, None)


def are_merged(optimizer):
    """Return whether `optimizer` is inside `merged_gradients`."""
    return _MERGED in vars(optimizer)
