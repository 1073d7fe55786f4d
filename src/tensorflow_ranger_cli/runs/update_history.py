"""History of a run, with the number of updates made so far."""

import keras


class UpdateHistory(keras.callbacks.Callback):
    """Records what `fit` logs, for each epoch and each micro-batch, beside the updates so far.

    With accumulation the micro-batches of an epoch say little about how often the weights moved.
    The record continues one from an earlier `fit`, so it can be kept over stops.

    Args:
        epochs: List of the rows recorded earlier.
        micro_batches: List of the rows recorded earlier.

    Attributes:
        epochs: List with a dict for each epoch: ``"epoch"`` (from 1), ``"updates"`` and the logs.
        micro_batches: List with a dict for each micro-batch: ``"updates"`` and the logs, which
            Keras averages over the epoch so far.
    """

    def __init__(self, epochs=(), micro_batches=()):
        super().__init__()
        self.epochs = list(epochs)
        self.micro_batches = list(micro_batches)

    def on_train_batch_end(self, batch, logs=None):
        """Record a micro-batch."""
        self.micro_batches.append({**(logs or {}), "updates": self._updates()})

    def on_epoch_end(self, epoch, logs=None):
        """Record an epoch."""
        self.epochs.append({"epoch": epoch + 1, **(logs or {}), "updates": self._updates()})

    def _updates(self):
        # On JAX `self.model` brings the variables up to date: a callback sees it so at any time.
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
