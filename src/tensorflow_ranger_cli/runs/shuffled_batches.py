"""The batches of a task's samples, in an order that a stopped run can take up again."""

import keras
import numpy as np


class ShuffledBatches(keras.utils.PyDataset):
    """Batches of samples, in an order that is a function of the seed and the epoch alone.

    `fit` shuffles by a generator whose state is lost with the process. Here epoch 7 has the same
    order whether or not the process saw epochs 0 to 6. Give `fit` the dataset, its
    `order_callback`, which tells it the epoch, and ``shuffle=False``: `fit` would else draw the
    batches in an order of its own.

    Args:
        x: Array of samples, or a dict or list of such arrays.
        y: Their targets, likewise.
        batch_size: Integer >= 1; samples of a batch. The last one may be smaller.
        seed: Integer >= 0.

    Raises:
        ValueError: `x` and `y` differ in length, or `batch_size` is no integer >= 1.

    Example:
        >>> batches = ShuffledBatches(x, y, batch_size=32, seed=0)
        >>> callbacks = [batches.order_callback()]
        >>> model.fit(batches, shuffle=False, initial_epoch=7, epochs=8, callbacks=callbacks)
    """

    def __init__(self, x, y, batch_size, seed):
        super().__init__()
        if count(x) != count(y):
            raise ValueError(
                f"x and y must have the same length: got {count(x)} and {count(y)}. "
                "Give one target for each sample."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be an integer >= 1: got {batch_size}.")
        self._arrays = x, y
        self._count = count(x)
        self._batch_size = batch_size
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Put the samples in the order of `epoch`, an integer >= 0."""
        self._order = np.random.default_rng((self._seed, epoch)).permutation(self._count)

    def order_callback(self):
        """Return the callback that calls `set_epoch` as `fit` begins an epoch."""
        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self.set_epoch(epoch)
        )

    def __len__(self):
        """Return the number of batches in an epoch."""
        return -(-self._count // self._batch_size)

    def __getitem__(self, index):
        """Return batch `index` of the epoch as ``(x, y)``."""
        start = index * self._batch_size
        chosen = self._order[start : start + self._batch_size]
        return keras.tree.map_structure(lambda array: array[chosen], self._arrays)


class OwnRows(keras.utils.PyDataset):
    """One process's rows of each batch of a dataset, which is the same in every process.

    Args:
        batches: `keras.utils.PyDataset` of tuples of arrays, or of
            dicts and lists of them.
        processes: How many processes share the batches.
        process: Number of this one.
    """

    def __init__(self, batches, processes, process):
        super().__init__()
        self._batches = batches
        self._processes, self._process = processes, process

    def __len__(self):
        """Return the number of batches."""
        return len(self._batches)

    def __getitem__(self, index):
        """Return this process's rows of batch `index`."""
        return keras.tree.map_structure(
            lambda array: np.array_split(array, self._processes)[self._process],
            self._batches[index],
        )


def count(x):
    """Return the number of samples in `x`, an array or a dict or list of arrays."""
    return len(keras.tree.flatten(x)[0])
