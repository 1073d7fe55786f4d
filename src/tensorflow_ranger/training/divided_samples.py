"""The samples of a batch as Python has divided them, for a loop in a graph.

The loop is handed the division as an array whose shape is the same for any number of micro-batches:
a graph is traced for each shape.
"""

import numpy as np


def table_of(cuts):
    """Return a division of a batch as an array of int32, of shape ``(samples, axes + 2)``.

    Samples are in the order in which they are run. The row of a sample holds its place in the
    batch, the steps of its micro-batch along each time axis, and the row that follows its
    micro-batch.

    Args:
        cuts: The `TrimmedSlice` objects of the batch.
    """
    return np.concatenate([_rows_of(each) for each in cuts])


def _rows_of(micro_batch):
    same = np.array([*micro_batch.steps.values(), micro_batch.stop], "int32")
    places = micro_batch.places
    return np.column_stack([places, np.tile(same, (len(places), 1))])
