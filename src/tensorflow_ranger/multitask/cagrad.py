"""CAGrad: the direction near the mean gradient that helps the worst-off task most."""

import math

from keras import ops

from tensorflow_ranger.multitask.gram import cosines, identity, ridge, task_count
from tensorflow_ranger.multitask.quadratic_program import best, solutions

CANCELLED = 8  # the length of a sum of unit vectors, in roots of `ridge`, that counts as 0


def weights(gram, c=0.5):
    """Return the weights of CAGrad.

    With ``g0`` the mean gradient it is the solution of

        max_d min_t g_t . d   where norm(d - g0) <= c norm(g0).

    With ``d = g0 + sum_t z_t g_t`` and ``l = min_t g_t . d`` its conditions of optimality are

        z >= 0,   g_t . d >= l,   z_t (g_t . d - l) = 0,   norm(sum_t z_t g_t) = c norm(g0).

    On a given support ``z = G^-1 (l - b)``, where ``G`` is the Gram matrix of the support and
    ``b_t = g_t . g0``. So the last condition is quadratic in `l`, and the larger root the one that
    a larger `c` makes larger:

        p l^2 - 2 q l + s = c^2 norm(g0)^2,   p = 1' G^-1 1,   q = 1' G^-1 b,   s = b' G^-1 b

    All supports are tried, and the one that meets the conditions gives the exact solution.

    Args:
        gram: Tensor (T, T), float32 or float64: the inner products of the tasks' gradients.
        c: Python float >= 0: the radius of the ball around the mean, in units of its norm. At 0 the
            result is the mean.

    Returns:
        Tensor (T,), of the dtype of `gram`: ``1/T + z``. Zeros where the tasks cannot be helped
        together, as TorchJD has it: the gradients have a convex combination of 0, among them all
        those with a vanished gradient, and the ball has a direction that points against none.
        Rounding sees that up to an angle of about 1e-2 (float32) or 1e-6 (float64).

    Raises:
        ValueError: `c` < 0, T > 10, or `gram` isn't a square matrix of float32 or float64.

    References:
        Liu et al., 2021, equation 3 and Algorithm 1. https://arxiv.org/abs/2110.14048
    """
    if not c >= 0:
        raise ValueError(
            f"c must be a number >= 0: got {c!r}. Use 0 for the mean of the gradients, 0.5 as the "
            "paper does."
        )
    count = task_count(gram)
    if c == 0:
        return ops.ones_like(gram[0]) / count
    # In units of the tasks' unit vectors, of norm(g0), and of the shortest gradient for `l`.
    cosine, lengths, present = cosines(gram)
    matrix = cosine + ridge(gram) * identity(gram)
    shortness = ops.min(lengths) / lengths
    mean = present * lengths / count
    along = ops.sum(matrix * mean, axis=1)
    norm = ops.sqrt(ops.relu(ops.sum(mean * along)))
    along = along / ops.where(norm > 0, norm, ops.ones_like(norm))

    sides = ops.stack([shortness, along, ops.ones_like(along)], axis=1)
    solved = solutions(matrix, sides)
    of_level, of_mean, of_ones = solved[:, :, 0], solved[:, :, 1], solved[:, :, 2]
    p = ops.sum(shortness * of_level, axis=1)
    q = ops.sum(shortness * of_mean, axis=1)
    s = ops.sum(along * of_mean, axis=1)
    root = ops.sqrt(ops.relu(q * q - p * (s - c * c)))
    level = ((q + root) / ops.where(p > 0, p, ops.ones_like(p)))[:, None]
    candidates = ops.relu(level * of_level - of_mean)
    slacks = candidates @ matrix + along - level * shortness
    violation = ops.abs(_norms(candidates, matrix) - c)
    added = _best(candidates, slacks, violation)

    # The nearest direction that points against no gradient, as UPGrad would have it.
    turned = ops.relu(-of_mean)
    turned = _best(turned, turned @ matrix + along, ops.zeros_like(violation))
    in_ball = _norms(turned[None], matrix)[0] <= c
    hull = ops.relu(of_ones)
    sums = ops.sum(hull, axis=1)
    hull = _norms(hull, matrix) / ops.where(sums > 0, sums, ops.ones_like(sums))
    nearest = ops.min(ops.where(sums > 0, hull, ops.ones_like(hull)))
    stuck = ops.logical_and(nearest < CANCELLED * math.sqrt(ridge(gram)), in_ball)
    weight = 1 / count + norm * added / lengths
    return ops.where(stuck, ops.zeros_like(weight), weight)


def _norms(vectors, matrix):
    """Return the lengths of vectors (N, T), given by their coefficients."""
    return ops.sqrt(ops.relu(ops.sum(vectors * (vectors @ matrix), axis=1)))


def _best(candidates, slacks, excess):
    """Return the best of the candidates (N, T)."""
    position = best(candidates[:, :, None], slacks[:, :, None], excess[:, None])
    return ops.take(candidates, position[0], axis=0)
