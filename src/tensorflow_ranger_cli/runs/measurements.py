"""What a run costs and finds, beside what it computes: time, memory, noise."""

import dataclasses
import time

import keras

from tensorflow_ranger_cli import frameworks


class Measurements(keras.callbacks.Callback):
    """Measures each epoch, and continues the measurements of an earlier `fit`.

    No two runs take the same time, so these numbers stand apart from the record of a run, which its
    settings decide to the last bit. The averages of the noise scale, which `microbatch` keeps in no
    saved model, are among them.

    It must come after the callbacks that wait for the batch's results, and after `NoiseScale`.

    Args:
        samples: Training samples in an epoch.
        devices: What trains, in words.
        record: `record` of the earlier `fit`, or None.
        noise: The `NoiseScale` among the callbacks, or None.

    Attributes:
        record: Dict of what JSON can hold: "samples", "devices", "epochs" (a list with a dict for
            each: "epoch", "seconds" of its training without what follows it, "peak_memory" in
            bytes or None, and "skipped_micro_batches" so far or None), "candidates" of the
            micro-batch plan, "padding" of it (how much is computed, in words, or None),
            "time_steps" of it (a pair of numbers, or None), "noise_advice" and "noise_averages".
    """

    def __init__(self, samples, devices, record=None, noise=None):
        super().__init__()
        new = {"epochs": [], "candidates": [], "padding": None, "time_steps": None}
        new |= {"noise_advice": None, "noise_averages": None}
        self.record = new | (record or {}) | {"samples": samples, "devices": devices}
        self._noise = noise

    def on_train_begin(self, logs=None):
        """Let the averages of the noise scale go on."""
        if self._noise is not None:
            self._noise.averages = self.record["noise_averages"]

    def on_epoch_begin(self, epoch, logs=None):
        """Begin an epoch's time and its peak of memory."""
        frameworks.reset_peak_memory()
        self._peak = None
        self._begun = self._ended = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Look at clock and memory: after the last batch Keras evaluates, which doesn't count."""
        self._ended = time.perf_counter()
        # The search for a micro-batch begins new peaks of its own.
        peaks = [peak for peak in (self._peak, frameworks.peak_memory()) if peak is not None]
        self._peak = max(peaks, default=None)

    def on_epoch_end(self, epoch, logs=None):
        """Add the epoch."""
        skipped = getattr(self.model.optimizer, "skipped_micro_batches", None)
        row = {
            "epoch": epoch + 1,
            "seconds": self._ended - self._begun,
            "peak_memory": self._peak,
            "skipped_micro_batches": skipped,
        }
        record = self.record
        record["epochs"] = [*record["epochs"], row]
        plan = getattr(self.model, "microbatch_plan", None)
        if plan is not None:
            record["padding"], record["time_steps"] = plan.padding, plan.time_steps
        if plan is not None and plan.candidates:
            record["candidates"] = [dataclasses.asdict(candidate) for candidate in plan.candidates]
        if self._noise is not None:
            record["noise_advice"] = self._noise.advice
            record["noise_averages"] = self._noise.averages
