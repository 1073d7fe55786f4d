"""UPGrad: every task's gradient is turned until it hurts no task, then their mean is taken."""

from keras import ops

from tensorflow_ranger.multitask.gram import cosines, identity, ridge, task_count
from tensorflow_ranger.multitask.quadratic_program import complementary


def weights(gram):
    """Return the weights of UPGrad: of the mean of the gradients projected on their dual cone.

    The dual cone has the directions that no gradient points against. The mean of directions in it
    lies in it, so no task is made worse to first order; and a task with a small gradient does not
    weigh more than it does in the plain mean.

        d = 1/T sum_i (g_i + sum_j w_ij g_j),   w_i = argmin_{w >= 0} norm(g_i + sum_j w_j g_j)

    Args:
        gram: Tensor (T, T), float32 or float64: the inner products of the tasks' gradients.

    Returns:
        Tensor (T,), of the dtype of `gram`, all >= 1/T; 1/T where no two gradients conflict. A
        vanished gradient has the weight 1/T and changes no other. Two opposite gradients cancel.

    Raises:
        ValueError: T > 10, or `gram` isn't a square matrix of float32 or float64.

    References:
        Quinton and Rey, 2024, equation 3 and Proposition 1. https://arxiv.org/abs/2406.16232
    """
    cosine, lengths, _ = cosines(gram)
    matrix = cosine + ridge(gram) * identity(gram)
    added = complementary(matrix, cosine)  # [j, i]: how much of unit vector j unit vector i takes
    return (1 + ops.sum(added * lengths, axis=1) / lengths) / task_count(gram)
