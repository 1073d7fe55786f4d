"""MGDA: the shortest vector between the gradients."""

from keras import ops

from tensorflow_ranger.multitask.gram import cosines, identity, ridge
from tensorflow_ranger.multitask.quadratic_program import complementary


def weights(gram):
    """Return the weights of MGDA: of the convex combination of least norm.

    It descends on every task at the same rate or faster, and vanishes where no direction can.

        min_w norm(sum_t w_t g_t)^2   where w >= 0, sum_t w_t = 1

    The condition that the weights sum to 1 may be a penalty instead, ``(sum_t w_t - 1)^2``, if the
    result is divided by its sum: along a ray the penalised minimum is somewhere, and its value
    rises with the norm. That is a complementarity problem, solved exactly.

    Args:
        gram: Tensor (T, T), float32 or float64: the inner products of the tasks' gradients.

    Returns:
        Tensor (T,), of the dtype of `gram`, >= 0 with the sum 1. Where a gradient has vanished, so
        has the shortest combination: the vanished share the weight, and the others have none.
        Opposite gradients have weights that cancel them; equal ones share theirs.

    Raises:
        ValueError: T > 10, or `gram` isn't a square matrix of float32 or float64.

    References:
        Desideri, 2012. https://doi.org/10.1016/j.crma.2012.03.014
        Sener and Koltun, 2018, equation 3. https://arxiv.org/abs/1810.04650
    """
    cosine, lengths, present = cosines(gram)
    # With x_t = w_t lengths_t the penalty reads (sum_t x_t / lengths_t - 1)^2. Lengths in units of
    # the shortest keep it as large as the rest.
    shortness = ops.min(lengths) / lengths
    penalty = shortness[:, None] * shortness[None, :]
    matrix = cosine + penalty + ridge(gram) * identity(gram)
    weight = shortness * complementary(matrix, -shortness[:, None])[:, 0]
    vanished = 1 - present
    count = ops.sum(vanished)
    weight = ops.where(count > 0, vanished, weight)
    return weight / ops.sum(weight)
