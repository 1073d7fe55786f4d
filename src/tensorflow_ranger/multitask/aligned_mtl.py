"""Aligned-MTL: the gradients, with their principal components made equally long."""

from keras import ops

from tensorflow_ranger.multitask.gram import machine_epsilon, task_count


def weights(gram):
    """Return the weights of Aligned-MTL: of the mean of the nearest gradients without conflict.

    The matrix of gradients becomes the nearest one with orthogonal rows of one length, that of its
    shortest principal component. So no task dominates, and what the tasks hardly agree upon sets
    the length of the step.

        w = sqrt(smallest) G^-1/2 1/T,   G^-1/2 = V diag(eigenvalues)^-1/2 V'

    Components that rounding alone gives are left out: those with an eigenvalue below
    ``8 T epsilon`` of the largest. TorchJD leaves them out below ``T epsilon``, where rounding may
    still be larger.

    Args:
        gram: Tensor (T, T), float32 or float64: the inner products of the tasks' gradients.

    Returns:
        Tensor (T,), of the dtype of `gram`; 1/T where the gradients are orthogonal and of one
        length, or all vanished. A gradient that vanishes among others has the weight 0. Parallel
        and opposite gradients have one component, along which their mean is taken.

    Raises:
        ValueError: `gram` isn't a square matrix of float32 or float64.

    References:
        Senushkin et al., 2023, equation 12 and Algorithm 1. https://arxiv.org/abs/2305.19000
    """
    count = task_count(gram)
    largest = ops.max(ops.diagonal(gram))
    vanished = largest <= 0
    gram = gram / ops.where(vanished, ops.ones_like(largest), largest)
    eigenvalues, vectors = ops.eigh(gram)
    top = ops.max(eigenvalues)
    kept = eigenvalues > 8 * count * machine_epsilon(gram) * top
    smallest = ops.min(ops.where(kept, eigenvalues, top))
    ratios = smallest / ops.where(kept, eigenvalues, ops.ones_like(eigenvalues))
    scales = ops.where(kept, ops.sqrt(ops.relu(ratios)), ops.zeros_like(ratios))
    mean = ops.ones_like(eigenvalues) / count
    components = scales * ops.sum(mean[:, None] * vectors, axis=0)
    weight = ops.sum(vectors * components, axis=1)
    return ops.where(vanished, mean, weight)
