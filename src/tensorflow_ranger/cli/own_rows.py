"""The part of each batch that one of several processes trains on."""

import keras
import numpy as np


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
