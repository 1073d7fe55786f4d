"""The batches of a task's samples."""

import keras
import numpy as np

from tensorflow_ranger.training.shuffled_batches import ShuffledBatches


class TaskBatches(ShuffledBatches):
    """Batches in the order of `ShuffledBatches`, of samples that are dicts or lists of arrays, too.

    Args:
        x: Array of samples, or a dict or list of such arrays.
        y: Their targets, likewise.
        batch_size: Integer >= 1; samples of a batch. The last one may be smaller.
        seed: Integer >= 0.
    """

    def __init__(self, x, y, batch_size, seed):
        rows = np.arange(count(x))
        super().__init__(rows, rows, batch_size, seed)
        self._arrays = x, y

    def __getitem__(self, index):
        """Return batch `index` of the epoch as ``(x, y)``."""
        rows, _ = super().__getitem__(index)
        return keras.tree.map_structure(lambda array: array[rows], self._arrays)


def count(x):
    """Return the number of samples in `x`."""
    return len(keras.tree.flatten(x)[0])
