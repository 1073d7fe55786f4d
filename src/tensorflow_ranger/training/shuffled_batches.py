"""Micro-batches in an order that a stopped run can take up again."""

import keras
import numpy as np


class ShuffledBatches(keras.utils.PyDataset):
    """Micro-batches of arrays, in an order that is a function of the seed and the epoch alone.

    `fit` shuffles by a generator whose state is lost with the process. Here epoch 7 has the same
    order whether or not the process saw epochs 0 to 6. Give `fit` the dataset, its
    `order_callback`, which tells it the epoch, and ``shuffle=False``: `fit` would else draw the
    micro-batches in an order of its own.

    Args:
        x: Array of samples.
        y: Array of targets, as long as `x`.
        batch_size: Integer >= 1; samples of a micro-batch. The last one may be smaller.
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
        if len(x) != len(y):
            raise ValueError(
                f"x and y must have the same length: got {len(x)} and {len(y)}. "
                "Give one target for each sample."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be an integer >= 1: got {batch_size}.")
        self._x, self._y = x, y
        self._batch_size = batch_size
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Put the samples in the order of `epoch`, an integer >= 0."""
        self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._x))

    def order_callback(self):
        """Return the callback that calls `set_epoch` as `fit` begins an epoch."""
        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self.set_epoch(epoch)
        )

    def __len__(self):
        """Return the number of micro-batches in an epoch."""
        return -(-len(self._x) // self._batch_size)

    def __getitem__(self, index):
        """Return micro-batch `index` of the epoch as ``(x, y)``."""
        start = index * self._batch_size
        chosen = self._order[start : start + self._batch_size]
        return self._x[chosen], self._y[chosen]
