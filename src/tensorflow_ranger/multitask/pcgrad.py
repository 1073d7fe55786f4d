"""PCGrad: every task's gradient gives up what it has against the others."""

import functools
import itertools

import numpy as np
from keras import ops

from tensorflow_ranger.multitask.gram import cosines, identity, task_count

ALL_ORDERS_UP_TO = 5  # tasks: 4! = 24 orders
DRAWN_ORDERS = 64
SEED = 0


@functools.cache
def _orders(count):
    """Return the orders of the other tasks, for every task: an int array (T, orders, T - 1)."""
    others = [[j for j in range(count) if j != i] for i in range(count)]
    if count <= ALL_ORDERS_UP_TO:
        return np.array([list(itertools.permutations(tasks)) for tasks in others])
    generator = np.random.default_rng(SEED)
    return generator.permuted(np.repeat(np.array(others)[:, None], DRAWN_ORDERS, axis=1), axis=2)


def weights(gram):
    """Return the weights of PCGrad: of the sum of the gradients, each freed of its conflicts.

    A gradient that points against another task's loses its component along that one, for the other
    tasks one after the other. What remains depends on their order.

        g <- g - min(0, g . g_j) / (g_j . g_j) g_j   for all j != i, beginning with g = g_i

    The paper draws the order anew for each update. Here the mean over all orders is taken, which is
    the expected update and has no random state, for up to 5 tasks; for more, the mean over 64
    orders for each task, drawn once with a fixed seed. Those 64 are not the same seen from another
    numbering of the tasks, so above 5 tasks the numbering has a small influence.

    Args:
        gram: Tensor (T, T), float32 or float64: the inner products of the tasks' gradients.

    Returns:
        Tensor (T,), of the dtype of `gram`, all >= 1; ones where no two gradients conflict. A
        vanished gradient has the weight 1 and changes no other. Two opposite gradients cancel.

    Raises:
        ValueError: `gram` isn't a square matrix of float32 or float64.

    References:
        Yu et al., 2020, Algorithm 1. https://arxiv.org/abs/2001.06782
    """
    cosine, lengths, _ = cosines(gram)
    orders = _orders(task_count(gram))
    # One unit vector for each task and order, in terms of the tasks' unit vectors: (T, orders, T).
    start = identity(gram)[:, None, :]
    projected = ops.repeat(start, orders.shape[1], axis=1)
    for step in range(orders.shape[2]):
        other = np.eye(len(orders))[orders[:, :, step]]
        other = ops.convert_to_tensor(other, dtype=gram.dtype)
        along = ops.sum((other @ cosine) * projected, axis=2, keepdims=True)
        projected = projected + ops.relu(-along) * other
    # Keras' mean and matmul round float64 to float32 on torch.
    added = ops.sum(projected - start, axis=1) / orders.shape[1]
    return 1 + ops.sum(lengths[:, None] * added, axis=0) / lengths
