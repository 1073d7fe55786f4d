"""A micro-batch that Python has cut: some samples, trimmed to the longest of them."""

from tensorflow_ranger.backend.batches import Slice, at


class TrimmedSlice(Slice):
    """Samples anywhere in the batch, without the steps that none of them needs.

    Args:
        padding: `Padding` that trims them.
        places: NumPy array of integers; their places in the batch.
        start: How many samples, in the order of their lengths, come before.
        steps: Dict from the size of a time axis to how many steps of it are left.
    """

    def __init__(self, padding, places, start, steps):
        super().__init__(start, len(places))
        self._padding = padding
        self.steps = steps
        self.places = places.astype("int32")

    @property
    def cells(self):
        """The time steps of all samples."""
        return len(self.places) * sum(self.steps.values())

    def of(self, data):
        """Return the micro-batch of a batch."""
        return self._padding.trimmed_batch(at(data, self.places), self.steps)

    def slopes_of(self, rows):
        """Return the micro-batch's part of the batch's `Slopes`."""
        return self._padding.trimmed_slopes(at(rows, self.places), self.steps)
