"""TensorFlow: the gradient of a table of which rows were looked up, kept as a list of rows.

Keras' optimizers are handed this list by plain `fit`, a `tf.IndexedSlices` with a row for each
look-up. Adaptive ones make of a row that was looked up twice something else than of the sum of the
two. So the gradient of a batch is the list of all its micro-batches, one after the other.
"""

import tensorflow as tf


def looks_up(graph):
    """Return whether a graph looks up rows of anything."""
    kinds = ("GatherV2", "GatherNd", "ResourceGather", "ResourceGatherNd")
    return any(operation.type in kinds for operation in graph.get_operations())


def lists_in(sums):
    """Return the places of the sums that are lists of rows."""
    return [i for i, total in enumerate(sums) if is_list(total)]


def begun(sums, places):
    """Return the sums with lists of no rows at these places."""
    return [_empty(total) if i in places else total for i, total in enumerate(sums)]


def _empty(total):
    values = tf.zeros([0, *total.shape[1:]], total.dtype)
    return tf.IndexedSlices(values, tf.zeros([0], "int32"), tf.constant([*total.shape], "int32"))


def is_list(total):
    """Return whether a sum is a list of rows."""
    return isinstance(total, tf.IndexedSlices)


class Collected:
    """The lists of micro-batches that Python runs one by one."""

    def __init__(self):
        self._lists = {}

    def take(self, sums):
        """Return the sums with lists of no rows in place of those of a micro-batch."""
        kept = list(sums)
        for i, total in enumerate(sums):
            if is_list(total):
                self._lists.setdefault(i, []).append(total)
                kept[i] = tf.IndexedSlices(total.values[:0], total.indices[:0], total.dense_shape)
        return kept

    def joined(self, sums):
        """Return the sums with the lists of the batch."""
        joined = list(sums)
        for i, parts in self._lists.items():
            values, indices = ([getattr(p, n) for p in parts] for n in ("values", "indices"))
            joined[i] = tf.IndexedSlices(
                tf.concat(values, 0), tf.concat(indices, 0), parts[0].dense_shape
            )
        return joined


class InLoop:
    """The lists of micro-batches that a loop in a graph runs, as what the loop hands on.

    Args:
        sums: Sums that the loop begins with.
        places: Places of the sums that may be lists.
    """

    def __init__(self, sums, places):
        self._sums = sums
        self._places = [i for i in places if is_list(sums[i])]

    def open(self):
        """Return what the first micro-batch is handed: other sums, and arrays of rows."""
        arrays = [
            (
                rows_array(self._sums[i].dtype, self._sums[i].values.shape[1:]),
                rows_array("int32", []),
            )
            for i in self._places
        ]
        return self._dense(self._sums), arrays

    def sums(self, dense):
        """Return what a micro-batch adds to."""
        dense = iter(dense)
        return [self._sums[i] if i in self._places else next(dense) for i in range(len(self._sums))]

    def add(self, sums, arrays):
        """Return what the next micro-batch is handed."""
        added = []
        for i, (values, indices) in zip(self._places, arrays, strict=True):
            place = values.size()
            values = values.write(place, tf.cast(sums[i].values, self._sums[i].dtype))
            added.append((values, indices.write(place, tf.cast(sums[i].indices, "int32"))))
        return self._dense(sums), added

    def close(self, dense, arrays):
        """Return the sums of the batch."""
        sums = self.sums(dense)
        for i, (values, indices) in zip(self._places, arrays, strict=True):
            shape = self._sums[i].dense_shape
            sums[i] = tf.IndexedSlices(values.concat(), indices.concat(), shape)
        return sums

    def _dense(self, sums):
        return [total for i, total in enumerate(sums) if i not in self._places]


def rows_array(dtype, shape):
    """Return an empty `tf.TensorArray` of lists of rows of this shape."""
    return tf.TensorArray(
        dtype, 0, dynamic_size=True, infer_shape=False, element_shape=[None, *shape]
    )
