"""Linear regression in float64 NumPy, by SGD that clips, with the norms of its gradients."""

import numpy as np


def weights():
    """Return the kernel and the bias that training begins with."""
    rng = np.random.default_rng(3)
    return [rng.normal(0, 0.5, (6, 2)), rng.normal(0, 0.5, (2,))]


def train(x, y, batch_size, size, rate, epochs, **clip):
    """Return what each epoch logs, the weights at the end, and the norm of each update.

    Args:
        x: Inputs of shape (samples, 6).
        y: Targets of shape (samples, 2); the loss is the mean squared error.
        batch_size: Samples per update.
        size: Samples per micro-batch.
        rate: Learning rate.
        epochs: Times that all samples are seen.
        **clip: ``clipnorm``, ``global_clipnorm`` or ``clipvalue``.
    """
    x, y = x.astype("float64"), y.astype("float64")
    values, found = weights(), []
    for _ in range(epochs):
        for start in range(0, len(x), batch_size):
            batch = slice(start, start + batch_size)
            gradients = _gradients(values, x[batch], y[batch])
            parts = [
                (_gradients(values, x[batch][i : i + size], y[batch][i : i + size]), rows)
                for i in range(0, len(x[batch]), size)
                if (rows := len(x[batch][i : i + size]))
            ]
            clipped = _clipped(gradients, **clip)
            norm = _norm(gradients)
            micro_batch_norm = sum(_norm(each) * rows for each, rows in parts) / len(x[batch])
            removed = 1 - _norm(clipped) / norm
            found.append([norm, micro_batch_norm, removed > 1e-9, removed])
            values = [v - rate * g for v, g in zip(values, clipped, strict=True)]
    found = np.array(found, "float64").reshape(epochs, -1, 4)
    names = ("gradient_norm", "microbatch_gradient_norm", "clipped_updates", "clipped_fraction")
    means = dict(zip(names, found.mean(1).T, strict=True))
    return {**means, "weights": values, "norms": found[..., 0]}


def _gradients(values, x, y):
    kernel, bias = values
    error = 2 * (x @ kernel + bias - y) / y.size
    return [x.T @ error, error.sum(0)]


def _norm(gradients):
    return np.sqrt(sum(np.sum(g**2) for g in gradients))


def _clipped(gradients, clipnorm=None, global_clipnorm=None, clipvalue=None):
    if clipnorm is not None:
        return [g * min(1, clipnorm / _norm([g])) for g in gradients]
    if global_clipnorm is not None:
        return [g * min(1, global_clipnorm / _norm(gradients)) for g in gradients]
    if clipvalue is not None:
        return [np.clip(g, -clipvalue, clipvalue) for g in gradients]
    return gradients
