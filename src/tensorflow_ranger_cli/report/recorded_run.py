"""What the directory of a run tells of it, for a report."""

import dataclasses
import shlex
import statistics

import numpy as np

from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.options import AUTO
from tensorflow_ranger_cli.report.means import single_values, window_means
from tensorflow_ranger_cli.runs import result as results
from tensorflow_ranger_cli.runs.run_directory import NOISE, RunDirectory
from tensorflow_ranger_cli.tasks import registry

MOST_POINTS = 1000  # of a curve; its chart is half as many pixels wide


def read(path):
    """Return the run in a directory.

    Args:
        path: `pathlib.Path` of the directory.

    Raises:
        UsageError: There is no run.
        CommandError: Its checkpoints are damaged.
    """
    directory = RunDirectory(path)
    if not directory.has_checkpoint():
        raise UsageError(
            f"DIR must be the directory of a run: got {path}, without {directory.checkpoint.name}. "
            f"Train one with: tensorflow-ranger train --output {path}"
        )
    settings, record, choice = directory.read()
    try:
        return Recorded(
            path, settings, record, choice, directory.measured, directory.result, directory.note
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CommandError(
            f"{directory.checkpoint} holds no record of a run: got {type(error).__name__}, "
            f"{error}. Put back a whole copy, or train anew with another --output"
        ) from error


def command(settings, output):
    """Return the command line that repeats a run.

    It names what it can, so that it means the same when defaults have changed.

    Args:
        settings: `Settings` of the run.
        output: Directory for the results, as a string.
    """
    words = ["tensorflow-ranger", "train", settings.task]
    for name in settings.names():
        value = getattr(settings, name)
        # --microbatch makes one update of each batch by itself.
        implied = name == "accumulation_steps" and settings.microbatch is not None
        if name == "task" or implied or value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return shlex.join([*words, "--output", output])


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A micro-batch size that a run looked at, as `Measurements` recorded it from its plan.

    Args:
        size: Samples.
        memory: Bytes its training step needs, or None where they are not known.
        seconds: Seconds per sample, or None if it was not timed.
        fits: Whether it fits the memory.
        segments: Segments of layers that are run again so that it fits.
        predicted: Bytes that it was predicted to need, or None.
    """

    size: int
    memory: int | None = None
    seconds: float | None = None
    fits: bool = True
    segments: int = 0
    predicted: int | None = None


class Recorded:
    """A run as its checkpoint holds it, whole epochs only.

    Args:
        path: `pathlib.Path` of the directory.
        settings: `Settings`.
        record: Arguments of its `UpdateHistory`.
        choice: Dict with the micro-batch "chosen" and the "reason", or None.
        measured: What `Measurements` recorded, or None.
        result: The result of a finished run, as `result.record` returns it, or None.
        note: A line on a checkpoint that could not be read, or None.

    Attributes:
        name: What the report calls it: the path, until somebody finds a shorter name.
        path: As given.
        settings: As given.
        epochs: Rows of the history.
        chosen: Samples of the micro-batch that was chosen, or None.
        reason: Why, in words, or None.
        candidates: List of the `Candidate`s that were looked at.
        noise: The rows of the history that hold a noise scale.
        measured: As given, or an empty dict.
        figures: The numbers of the saved model, by `Figure`.
        difference: Why they are not the last epoch's, in a sentence, or None.
        note: As given.
        task: `Task`.
        samples: Training samples in an epoch. As if each batch were full, where not recorded.
        updates: Array with the number of each update.
        seen: Array with the samples seen up to each update, in all.
        batches: Array with the samples of each update.

    Raises:
        UsageError: The task is unknown.
        KeyError, TypeError, ValueError: The record is none.
    """

    def __init__(self, path, settings, record, choice, measured, result, note):
        self.path, self.name = path, str(path)
        self.settings, self.note = settings, note
        self.chosen = None if choice is None else choice["chosen"]
        self.reason = None if choice is None else choice["reason"]
        self.measured = measured or {}
        self.task = registry.find(settings.task)
        self.epochs, rows = record["epochs"], record["micro_batches"]
        self.figures, self.difference = {}, None
        if result is not None:
            self.figures = results.figures(result, self.task)
            self.difference = results.difference_in_words(result, self.epochs)
        per_epoch = len(rows) // max(len(self.epochs), 1)
        if per_epoch * len(self.epochs) != len(rows):
            raise ValueError(f"{len(rows)} batches in {len(self.epochs)} epochs")
        self.samples = self.measured.get("samples", per_epoch * settings.batch_size)
        made = np.array([row["updates"] for row in rows], "int64")
        closing = np.flatnonzero(np.diff(made, prepend=0))
        if self.is_finished and len(made) and len(made) - 1 not in closing:
            # The end of training closed the window, after the last row was written.
            closing, made = np.append(closing, len(made) - 1), np.append(made[:-1], made[-1] + 1)
        self.updates = made[closing]
        in_epoch = np.arange(1, per_epoch + 1) * settings.batch_size
        starts = self.samples * np.arange(len(self.epochs))
        seen = (starts[:, None] + np.minimum(in_epoch, self.samples)).ravel()
        self.seen = seen[closing]
        self.batches = np.diff(self.seen, prepend=0)
        self._training = {}
        for name in self.metrics if len(closing) else ():
            running = np.array([row[name] for row in rows], "float64")
            values = single_values(running, per_epoch, self.samples, settings.batch_size)
            self._training[name] = window_means(values, closing)
        self._held_out = {n: [row[f"val_{n}"] for row in self.epochs] for n in self.metrics}
        self.noise = [
            {name: row[name] for name in (*NOISE, "updates")}
            for row in self.epochs
            if NOISE[0] in row
        ]
        self.candidates = [Candidate(**given) for given in self.measured.get("candidates", [])]
        self._seconds = [row["seconds"] / self.samples for row in self._measured_epochs]
        self._memory = [row["peak_memory"] for row in self._measured_epochs]

    @property
    def _measured_epochs(self):
        return self.measured.get("epochs", [])

    @property
    def metrics(self):
        """Names of the loss and the metrics."""
        return ("loss", *self.task.metrics)

    @property
    def is_finished(self):
        """Whether all epochs were trained."""
        return len(self.epochs) >= self.settings.epochs

    @property
    def effective_batch(self):
        """Samples of an update that has all its micro-batches."""
        return self.settings.batch_size * self.settings.accumulation_steps

    @property
    def command(self):
        """The command line that repeats the run, beside it in `runs`."""
        return command(self.settings, f"runs/{self.path.resolve().name}-again")

    @property
    def repeats_exactly(self):
        """Whether `command` gives the same weights, on the same machine."""
        return self.settings.microbatch != AUTO

    def training(self, name):
        """Return ``(updates, samples, means)``: curves with a point at each update.

        Beyond `MOST_POINTS` updates, a point is the mean of several.
        """
        values = self._training.get(name, np.zeros(0))
        return thinned(self.updates), thinned(self.seen), thinned(values, np.mean)

    def held_out(self, name):
        """Return ``(updates, samples, values)`` with a value at the end of each epoch."""
        updates = [row["updates"] for row in self.epochs]
        samples = [self.samples * (i + 1) for i in range(len(self.epochs))]
        return updates, samples, self._held_out.get(name, [])

    def per_epoch(self, what):
        """Return ``(epochs, values)`` of what was measured: "seconds" per sample, or "memory"."""
        values = {"seconds": self._seconds, "memory": self._memory}[what]
        rows = zip(self._measured_epochs, values, strict=True)
        known = [(row["epoch"], value) for row, value in rows if value is not None]
        return [epoch for epoch, _ in known], [value for _, value in known]

    @property
    def is_measured(self):
        """Whether time and memory were recorded."""
        return bool(self._measured_epochs)

    @property
    def seconds(self):
        """Seconds per sample in the median epoch but the first, which compiles, or None.

        A run of one epoch has only the first.
        """
        if not self._seconds:
            return None
        return statistics.median(self._seconds[1:] or self._seconds)

    @property
    def total_seconds(self):
        """Seconds of training in all epochs, or None."""
        return sum(self._seconds) * self.samples if self._seconds else None

    @property
    def memory(self):
        """Bytes of the largest peak, or None."""
        return max(self.per_epoch("memory")[1], default=None)

    @property
    def computed_steps(self):
        """Part of the first batch's padded time steps that is computed, or None if not recorded.

        It is 1 where samples are padded and nothing is trimmed.
        """
        if self.task.padding is None:
            return None
        if not self.settings.trim_padding:
            return 1.0
        computed, padded = self.measured.get("time_steps") or (None, 1)
        return None if computed is None else computed / padded

    @property
    def skipped(self):
        """Micro-batches that were left out, or None where nobody counts."""
        return self._measured_epochs[-1]["skipped_micro_batches"] if self.is_measured else None


def thinned(values, of=lambda group: group[-1]):
    """Return at most `MOST_POINTS` values: one `of` each group of neighbours.

    Args:
        values: Array.
        of: Function of an array that returns a number: the last, or the mean.
    """
    size = -(-len(values) // MOST_POINTS)
    if size <= 1:
        return list(values.tolist())
    groups = np.split(values, range(size, len(values), size))
    return [np.asarray(of(group)).item() for group in groups]
