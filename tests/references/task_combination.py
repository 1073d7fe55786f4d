"""Combining the tasks' gradients, slow and obvious, in float64: from the gradients themselves.

Where the rules solve for all supports of the Gram matrix, these solve least squares problems with
SciPy's Lawson-Hanson solver, on the gradients.
"""

import itertools

import numpy as np
from scipy.optimize import nnls


def sum_of_gradients(gradients):
    """Return the sum of the rows."""
    total = np.zeros(gradients.shape[1])
    for gradient in gradients:
        total += gradient
    return total


def pcgrad(gradients):
    """Algorithm 1 of Yu et al. 2020, its mean over all orders."""
    total = np.zeros(gradients.shape[1])
    for i, gradient in enumerate(gradients):
        others = [j for j in range(len(gradients)) if j != i]
        orders = list(itertools.permutations(others))
        for order in orders:
            projected = gradient.copy()
            for j in order:
                inner = projected @ gradients[j]
                if inner < 0:
                    projected = projected - inner / (gradients[j] @ gradients[j]) * gradients[j]
            total += projected / len(orders)
    return total


def mgda(gradients):
    """Equation 3 of Sener and Koltun 2018: the shortest vector of the convex hull.

    The non-negative least squares solution of ``[gradients', 1'] a = [0, 1]`` is a multiple of the
    weights.
    """
    lengths = np.linalg.norm(gradients, axis=1)
    if not lengths.all():
        return np.zeros(gradients.shape[1])
    unit = gradients / lengths.min()
    system = np.vstack([unit.T, np.ones(len(gradients))])
    a, _ = nnls(system, np.append(np.zeros(gradients.shape[1]), 1.0))
    return gradients.T @ (a / a.sum())


def upgrad(gradients):
    """Equation 3 of Quinton and Rey 2024, by Moreau's decomposition of each gradient."""
    total = np.zeros(gradients.shape[1])
    for gradient in gradients:
        w, _ = nnls(gradients.T, -gradient)
        total += (gradient + gradients.T @ w) / len(gradients)
    return total


def shortest_above(gradients, heights):
    """Return the shortest v with ``gradients v >= heights``, or None where there is none.

    Lawson and Hanson 1974, chapter 23, problem LDP.
    """
    system = np.vstack([gradients.T, heights])
    target = np.append(np.zeros(gradients.shape[1]), 1.0)
    u, _ = nnls(system, target)
    rest = system @ u - target
    if -rest[-1] < 1e-14:
        return None
    return -rest[:-1] / rest[-1]


def cagrad(gradients, c=0.5):
    """Equation 3 of Liu et al. 2021: bisection for the largest gain that the ball has room for."""
    mean = gradients.mean(axis=0)
    size = np.linalg.norm(mean)
    if size < 1e-14 * np.linalg.norm(gradients) or not size:
        return np.zeros_like(mean)
    lengths = np.linalg.norm(gradients, axis=1)
    scales = np.where(lengths > 0, lengths, 1)

    def step(gain):
        heights = (gain - gradients @ mean) / scales / size
        return shortest_above(gradients / scales[:, None], heights)

    low, high = (gradients @ mean).min(), (1 + c) * size * lengths.min()
    found = np.zeros_like(mean)
    for _ in range(200):
        gain = (low + high) / 2
        tried = step(gain)
        if tried is None or np.linalg.norm(tried) > c:
            high = gain
        else:
            low, found = gain, tried
    if np.linalg.norm(found) < (1 - 1e-6) * c:
        return np.zeros_like(mean)  # the gradients cancel
    return mean + size * found


def aligned(gradients):
    """Algorithm 1 of Senushkin et al. 2023, by the singular value decomposition."""
    u, values, v = np.linalg.svd(gradients, full_matrices=False)
    if values[0] == 0:
        return gradients.mean(axis=0)
    rank = int((values > 1e-7 * values[0]).sum())
    nearest = values[rank - 1] * u[:, :rank] @ v[:rank]
    return nearest.mean(axis=0)


TWINS = {
    "sum": sum_of_gradients,
    "pcgrad": pcgrad,
    "mgda": mgda,
    "cagrad": cagrad,
    "upgrad": upgrad,
    "aligned": aligned,
}


def random_gradients(cases=100):
    """Return matrices of 2 to 6 gradients; a third have fewer dimensions than tasks."""
    generator = np.random.default_rng(7)
    matrices = []
    for case in range(cases):
        tasks = 2 + case % 5
        dimensions = (
            generator.integers(1, tasks) if case % 3 == 0 else generator.integers(tasks, 20)
        )
        common = generator.uniform(-1, 1) * generator.normal(size=dimensions)
        matrices.append(generator.normal(size=(tasks, dimensions)) + common)
    return matrices


def structured_gradients():
    """Return the matrices of gradients by name at which rules of this kind go wrong."""
    a, b, d = np.random.default_rng(3).normal(size=(3, 7))
    return {
        "one_task": np.stack([a]),
        "zero_row": np.stack([a, 0 * a, b]),
        "zero_row_in_conflict": np.stack([a, 0 * a, b - 3 * a]),
        "two_zero_rows": np.stack([0 * a, a, 0 * a]),
        "all_zero": np.zeros((3, 4)),
        "equal": np.stack([a, a]),
        "duplicates": np.stack([a, a, b, d]),
        "parallel": np.stack([a, 3 * a, b]),
        "opposite": np.stack([a, -a]),
        "opposite_of_two_lengths": np.stack([a, -2 * a]),
        "opposite_and_a_third": np.stack([a, -a, b]),
        "opposite_and_duplicates": np.stack([a, -2 * a, b, b]),
        "rank_one": np.outer([1.0, 2.0, 0.5], a),
        "rank_one_in_conflict": np.outer([1.0, 2.0, -0.5], a),
        "orthonormal": np.eye(4),
        "orthogonal": np.diag([1.0, 2.0, 3.0, 0.1, 5.0]),
        "plane": np.array([[1.0, 0.0], [-0.6, 0.9], [-0.5, -0.8], [0.1, 0.7]]),
        "lengths_apart": np.stack([1e-3 * a, b, 1e3 * d]),
        "conflict_of_lengths_apart": np.stack([a, 1e-3 * (b - 2 * a)]),
        "six": np.random.default_rng(5).normal(size=(6, 6)),
    }
