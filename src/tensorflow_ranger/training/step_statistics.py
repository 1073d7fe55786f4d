"""Numbers that a training step writes and a callback reads."""

import keras
from keras import ops


class StepStatistics(keras.metrics.Metric):
    """A vector that travels through compiled steps as Keras' metrics do, and appears in no log.

    Args:
        name: Its name.
        size: Its length.

    Attributes:
        memory: Batches that averages in it reach back, or None.
    """

    def __init__(self, name, size):
        self.memory = None
        super().__init__(name=name, dtype="float32")
        # Replicas write the same.
        self.values = self.add_variable((size,), "zeros", name="values", aggregation="mean")

    def update_state(self):
        """Do nothing: the step writes."""

    def reset_state(self):
        """Keep what there is: Keras asks for this before each epoch and each evaluation."""

    def clear(self):
        """Begin anew."""
        self.values.assign(ops.zeros_like(self.values.value))

    def read(self):
        """Return the vector as a NumPy array."""
        return ops.convert_to_numpy(ops.convert_to_tensor(self.values))

    def result(self):
        """Return nothing to log."""
        return {}
