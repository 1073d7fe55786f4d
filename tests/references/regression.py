"""A small network with one hidden layer, its loss and its gradients, in float64."""

import numpy as np


class Regression:
    """``y = tanh(x W1 + b1) W2 + b2`` with half the squared error, on fixed random samples.

    Args:
        samples: Number of samples.
        seed: Seed of the samples and of the initial weights.
    """

    def __init__(self, samples, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(samples, 6))
        self.y = rng.normal(size=(samples, 3))
        shapes = [(6, 5), (5,), (5, 3), (3,)]
        self.weights = [0.5 * rng.normal(size=shape) for shape in shapes]

    def gradients(self, weights, samples):
        """Return the gradients of the mean loss over `samples`, an index array."""
        x, y = self.x[samples], self.y[samples]
        w1, b1, w2, b2 = weights
        hidden = np.tanh(x @ w1 + b1)
        error = (hidden @ w2 + b2 - y) / len(samples)
        below = (error @ w2.T) * (1 - hidden**2)
        return [x.T @ below, below.sum(0), hidden.T @ error, error.sum(0)]
