"""The Gram matrix of the tasks' gradients, taken apart into lengths and angles."""

import numpy as np
from keras import backend, ops


def task_count(gram):
    """Return T, for a Gram matrix that the rules can work with.

    Args:
        gram: Tensor (T, T).

    Raises:
        ValueError: `gram` isn't a square matrix of a known size, or neither float32 nor float64.
    """
    shape, dtype = tuple(gram.shape), backend.standardize_dtype(gram.dtype)
    if len(shape) != 2 or shape[0] is None or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(
            f"gram must have the shape (T, T), with T tasks known while tracing: got {shape}. "
            "Flatten and stack the tasks' gradients to a matrix, one a row, and give it times its "
            "transpose."
        )
    if dtype not in ("float32", "float64"):
        raise ValueError(
            f"gram must be of float32 or float64: got {dtype}. Inner products of gradients need "
            "the digits; sum them in float32."
        )
    return shape[0]


def machine_epsilon(tensor):
    """Return the distance from 1 to the next number of the tensor's dtype, a Python float."""
    return float(np.finfo(backend.standardize_dtype(tensor.dtype)).eps)


def ridge(gram):
    """Return what is added to the diagonal of a matrix of cosines, to make it regular: 4 T epsilon.

    It is the rounding of a Gram matrix, so no digit is lost that was there. It stands for a
    component of length ``sqrt(ridge)`` that each task has to itself.

    Args:
        gram: Tensor (T, T), float32 or float64.
    """
    return 4 * task_count(gram) * machine_epsilon(gram)


def identity(gram):
    """Return the identity matrix of the shape and dtype of `gram`."""
    return ops.convert_to_tensor(np.eye(task_count(gram)), dtype=gram.dtype)


def cosines(gram):
    """Return the cosines between the gradients, their lengths, and which have not vanished.

    A rule that works on unit vectors keeps its digits where one task's gradient is a millionth of
    another's, and is blind to the gradients' common scale.

        lengths_i = sqrt(gram_ii / max_j gram_jj),   cosines_ij = gram_ij / sqrt(gram_ii gram_jj)

    Args:
        gram: Tensor (T, T), float32 or float64: the inner products of the tasks' gradients.

    Returns:
        ``(cosines, lengths, present)``. `cosines`: (T, T), with zeros in the row and column of a
        vanished gradient. `lengths`: (T,), in units of the longest, with 1 for a vanished gradient,
        since they are divided by. `present`: (T,) of 0 and 1, 0 for a vanished gradient: one of a
        length below 1e-15 (float32) or 1e-145 (float64) of the longest, or all of them.

    Raises:
        ValueError: As `task_count` does.
    """
    task_count(gram)
    limits = np.finfo(backend.standardize_dtype(gram.dtype))
    largest = ops.max(ops.diagonal(gram))
    gram = gram / ops.where(largest > 0, largest, ops.ones_like(largest))
    squares = ops.diagonal(gram)
    # Below this the product of two lengths would be rounded to zero.
    seen = squares > float(limits.tiny / limits.eps)
    lengths = ops.sqrt(ops.where(seen, squares, ops.ones_like(squares)))
    present = ops.cast(seen, gram.dtype)
    unit = present / lengths
    return gram * unit[:, None] * unit[None, :], lengths, present
