"""Means of what Keras logs: of each micro-batch, and of the window of an update."""

import numpy as np


def single_values(running, per_epoch, samples, batch_size):
    """Return each micro-batch's own mean.

    Keras logs the mean over the epoch so far. With n_k samples seen up to micro-batch k,

        v_k = (n_k m_k - n_{k-1} m_{k-1}) / (n_k - n_{k-1}).

    Args:
        running: Array of the logged means m_k, whole epochs one after the other.
        per_epoch: Micro-batches in an epoch.
        samples: Samples in an epoch.
        batch_size: Samples of a micro-batch; the last one of an epoch may have fewer.
    """
    seen = np.minimum(np.arange(1, per_epoch + 1) * batch_size, samples)
    sums = running.reshape(-1, per_epoch) * seen
    values = np.diff(sums, axis=1, prepend=0) / np.diff(seen, prepend=0)
    return values.ravel()


def window_means(values, closing):
    """Return the mean over each window.

    Args:
        values: Array with a value for each micro-batch.
        closing: Indices of the micro-batches that closed a window.
    """
    starts = np.concatenate([[0], closing[:-1] + 1])
    return np.array(
        [values[start : end + 1].mean() for start, end in zip(starts, closing, strict=True)]
    )
