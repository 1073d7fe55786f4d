"""Small quadratic programs solved exactly: every support is tried, all at once."""

import numpy as np
from keras import ops

from tensorflow_ranger.multitask.gram import machine_epsilon, ridge, task_count

MOST_TASKS = 10


def solutions(matrix, sides):
    """Return the solutions of all principal subsystems of a positive definite matrix.

    A minimum over ``w >= 0`` is the unconstrained one over the right support. There are ``2^T`` of
    them: few, for the T that a model has, and solved together they cost T steps of elimination,
    without a loop whose end the data decide.

        x_S = matrix_SS^-1 sides_S,   x = 0 outside S

    It eliminates without exchanging rows, which is stable for a positive definite matrix. A pivot
    that rounding made smaller than half of `ridge` counts as that.

    Args:
        matrix: Tensor (T, T), float32 or float64, positive definite with a diagonal of about 1.
        sides: Tensor (T, R): R right-hand sides.

    Returns:
        Tensor (2^T, T, R). The support of number n has the tasks whose bits n has.

    Raises:
        ValueError: T > 10.
    """
    count = task_count(matrix)
    if count > MOST_TASKS:
        raise ValueError(
            f"This rule tries all sets of tasks: got {count} tasks, expected at most {MOST_TASKS}. "
            'Add up losses that belong together, or use "pcgrad", "aligned" or "sum".'
        )
    least = ridge(matrix) / 2
    rows = ops.convert_to_tensor(np.eye(count)[:, :, None], dtype=matrix.dtype)
    tableau = ops.concatenate([matrix, sides], axis=1)[None]
    for k in range(count):
        pivot = least + ops.relu(tableau[:, k : k + 1, k : k + 1] - least)
        row = tableau[:, k : k + 1, :] / pivot
        with_k = tableau - (tableau[:, :, k : k + 1] - rows[k]) * row
        tableau = ops.concatenate([tableau, with_k], axis=0)
    members = np.arange(2**count)[:, None] >> np.arange(count) & 1
    members = ops.convert_to_tensor(members[:, :, None], dtype=matrix.dtype)
    return members * tableau[:, :, count:]


def best(candidates, slacks, excess):
    """Return the position of the candidate that violates the conditions of optimality least.

    The candidates are compared by how far they are from ``w >= 0, slack >= 0, w slack = 0``, not by
    the objective, which is flat at its minimum and would cost half of the digits:

        max_i abs(min(w_i, slack_i)) + epsilon max_i w_i

    The last term is the rounding of the first, so that among equals the smallest wins.

    Args:
        candidates: Tensor (N, T, R), all >= 0.
        slacks: Tensor (N, T, R): the derivatives by the candidates.
        excess: Tensor (N, R), or a number: what else is violated, >= 0.

    Returns:
        Integer tensor (R,).
    """
    # Keras' minimum and matmul round float64 to float32 on torch; where and @ do not.
    smaller = ops.where(candidates < slacks, candidates, slacks)
    violation = ops.max(ops.abs(smaller), axis=1)
    rounding = machine_epsilon(candidates) * ops.max(candidates, axis=1)
    score = violation + rounding + excess
    worst = 1e30 * ops.ones_like(score)
    return ops.argmin(ops.where(score < worst, score, worst), axis=0)  # NaN is worst, too


def complementary(matrix, sides):
    """Return the minimiser of ``w' matrix w / 2 + side' w`` over ``w >= 0``, for every side.

    Args:
        matrix: Tensor (T, T), as `solutions` takes it.
        sides: Tensor (T, R).

    Returns:
        Tensor (T, R): ``w >= 0`` with ``matrix w + side >= 0``, and one of the two 0 for each task.

    Raises:
        ValueError: T > 10.

    References:
        Cottle, Pang and Stone, 1992, "The linear complementarity problem", sections 1.2 and 3.1.
    """
    candidates = ops.relu(-solutions(matrix, sides))
    position = best(candidates, matrix @ candidates + sides, 0.0)
    return ops.take_along_axis(candidates, position[None, None, :], axis=0)[0]
