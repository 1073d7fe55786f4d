"""The samples of a batch in the order of their lengths, found within the step that runs them.

Replicas that meet within one compiled step are handed their samples there. Each sorts its own, and
runs some at a time, trimmed to the longest: that asks nothing of the other replicas, which meet
behind the loop alone.
"""

from keras import ops

from tensorflow_ranger.backend.batches import at


class TrimmedSamples:
    """Samples of which a loop within a step runs some at a time, trimmed to the longest of them.

    Args:
        padding: `Padding` that trims them.
        sizes: The sizes of the time axes of the inputs.
        table: What `divided_samples.table_of` returned, as a tensor; None for micro-batches of as
            many samples each.
    """

    def __init__(self, padding, sizes, table=None):
        self._padding = padding
        self._sizes = sizes
        #: The division of the samples, or None.
        self.table = table

    def micro_batch(self, data, places, steps):
        """Return the samples of ``(x, y, sample_weight)`` at these places, with so many steps."""
        return self._padding.trimmed_batch(at(data, places), self._by_size(steps))

    def slopes(self, rows, places, steps):
        """Return their part of the batch's ``Slopes.rows``."""
        return self._padding.trimmed_slopes(at(rows, places), self._by_size(steps))

    def filled(self, rows):
        """Return ``BatchOutputs.rows`` of a micro-batch with zeros for what was trimmed."""
        return self._padding.filled_rows(rows)

    def _by_size(self, steps):
        return dict(zip(self._sizes, steps, strict=True))


class SortedSamples(TrimmedSamples):
    """Samples of a batch, the longest first.

    Args:
        padding: `Padding` that trims them.
        x: Inputs.
        sizes: The sizes of their time axes.
        most: How many lengths micro-batches may have, where each shape costs a compilation; None
            for any. Lengths are rounded up, and those along several axes together: a sample has
            the k-th length along each axis.
    """

    def __init__(self, padding, x, sizes, most=None):
        super().__init__(padding, sizes)
        #: With `most`: tuples of the steps along each time axis, the longest first.
        self.choices = []
        lengths = [self._lengths(padding.long_inputs(x), size) for size in sizes]
        if most is not None:
            lengths = self._rounded(lengths, most)
        lengths = ops.stack(lengths, axis=1)
        #: Integer array of shape ``(samples,)``; the places of the samples in their batch.
        self.order = ops.cast(ops.argsort(-ops.sum(lengths, axis=1)), "int32")
        #: Integer array of shape ``(samples, axes)``; their steps along each time axis.
        self.lengths = ops.take(lengths, self.order, axis=0)

    def cells(self, size):
        """Return how many time steps micro-batches of `size` samples compute."""
        lengths = ops.convert_to_numpy(self.lengths)
        parts = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        return sum(len(part) * int(part.max(axis=0).sum()) for part in parts)

    def _lengths(self, leaves, size):
        numbers, longest = ops.arange(1, size + 1, dtype="int32"), 0
        for leaf in leaves:
            if leaf.shape[1] == size:
                real = ops.not_equal(leaf, self._padding.value)
                real = ops.any(real, axis=tuple(range(2, len(leaf.shape))))
                longest = ops.maximum(longest, ops.max(ops.where(real, numbers, 0), axis=1))
        # As `Padding.lengths_of`: a sample without a real step keeps all of them.
        return ops.where(ops.equal(longest, 0), size, longest)

    def _rounded(self, lengths, most):
        units = [-(-size // most) for size in self._sizes]
        number = 0
        for length, unit in zip(lengths, units, strict=True):
            number = ops.maximum(number, (length + unit - 1) // unit)
        pairs = list(zip(self._sizes, units, strict=True))
        last = max(-(-size // unit) for size, unit in pairs)
        self.choices = [
            tuple(min(size, unit * k) for size, unit in pairs) for k in range(last, 0, -1)
        ]
        return [ops.minimum(number * unit, size) for size, unit in pairs]
