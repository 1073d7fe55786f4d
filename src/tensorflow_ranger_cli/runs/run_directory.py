"""The directory of a run: its results, and the checkpoint it goes on from.

The checkpoint before the last is kept, and read where the last one is damaged. The other files are
made from it and never read.
"""

import contextlib
import csv
import dataclasses
import json
import shlex
import shutil
import tempfile
from pathlib import Path

from tensorflow_ranger_cli.errors import CommandError, Stopped, UsageError
from tensorflow_ranger_cli.runs import checkpoint

NOISE = ("noise_scale", "noise_scale_low", "noise_scale_high")


class RunDirectory:
    """The files of one run.

    Args:
        path: `pathlib.Path` of the directory.

    Attributes:
        results: Paths of what a finished run leaves, beside its checkpoints.
        note: A line on the checkpoint that was read, if it is not the last, else None.
        measured: What was measured up to the checkpoint that was read, as `write_checkpoint` took
            it, or None.
        result: The result in the checkpoint that was read, as `write_result` took it, or None.
    """

    def __init__(self, path):
        self.path = path
        self.checkpoint = path / "checkpoint.keras"
        self.previous = path / "checkpoint.previous.keras"
        self.model = path / "model.keras"
        self.history = path / "history.csv"
        self.settings = path / "settings.json"
        self.results = (self.model, self.history, self.settings)
        self.note = None
        self.measured = None
        self.result = None
        self._whole = None  # the checkpoint known to be so
        self._epochs = 0  # done, by the checkpoint written last
        self._replaced = []  # files of an earlier run
        self._seeds: list = []  # of its random generators

    @contextlib.contextmanager
    def begun(self, force=False):
        """Look for room for a new run; return the context that the run takes place in.

        The first checkpoint makes the directory, and deletes an earlier run here. An error before
        the first epoch is done deletes what the new run has written; Ctrl-C does not.

        Args:
            force: Whether to replace an earlier run of which epochs were done.

        Raises:
            UsageError: It holds such a run already.
            CommandError: It cannot be made or written to.
        """
        with writing(self.path):
            self._replaced = [file for file in self._files if file.exists()]
            if self._replaced and not force and self._has_epochs():
                raise UsageError(
                    f"{self.path} already holds {', '.join(f.name for f in self._replaced)}. "
                    "Continue that run with --resume, replace it with --force, or choose "
                    "another --output"
                )
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.path).close()
            finally:
                _remove_empty(made)
        try:
            yield
        except BaseException as error:
            failed = not isinstance(error, KeyboardInterrupt)
            if failed and self._whole is not None and not self._epochs:
                for file in self._files:
                    file.unlink(missing_ok=True)
            _remove_empty(made)
            raise

    def _has_epochs(self):
        """Return whether an epoch of the run here was done, as far as can be told."""
        if self.model.exists():
            return True
        try:
            _, record, _ = RunDirectory(self.path).read()
        except CommandError:
            return True
        return bool(record["epochs"])

    def read(self):
        """Return what the checkpoint says of its run.

        Returns:
            ``(settings, record, choice)``: the `Settings`, the arguments of its `UpdateHistory`,
            and the micro-batch that was chosen, as `write_checkpoint` took it.

        Raises:
            UsageError: There is no checkpoint.
            CommandError: None is whole, or the last is none of ours.
        """
        try:
            return self._read(self.checkpoint)
        except (UsageError, CommandError) as error:
            try:
                state = self._read(self.previous)
            except (UsageError, CommandError):
                raise error from None
            damage = str(error).removeprefix("nothing to resume: ").partition(". ")[0]
            self.note = f"{damage}. Continuing from {self.previous.name}"
            return state

    def _read(self, path):
        found = checkpoint.read(path)
        self._whole, self._seeds = path, found.seeds
        self.measured, self.result = found.measured, found.result
        return found.settings, found.record, found.choice

    def load_model(self):
        """Return the model as the checkpoint read holds it, compiled, amid its window.

        Raises:
            CommandError: Keras cannot make a model of it.
        """
        assert self._whole is not None
        return checkpoint.load_model(self._whole, self._seeds)

    def write_checkpoint(self, model, settings, history, choice, measured=None):
        """Put the run's state into the place of the last checkpoint, which becomes the previous.

        At every moment one of the two files is a whole checkpoint.

        Args:
            model: The compiled model.
            settings: `Settings`.
            history: `UpdateHistory`.
            choice: Dict with the micro-batch "chosen" and the "reason", or None.
            measured: Dict of what was measured, or None.

        Raises:
            CommandError: The file cannot be written.
        """

        def replace(path):
            checkpoint.write(path, model, settings, history, choice, measured)
            for file in self._replaced:
                file.unlink(missing_ok=True)
            self._replaced = []
            if self._whole == self.checkpoint:
                self.checkpoint.replace(self.previous)

        self._replace(self.checkpoint, replace)
        self._whole, self._epochs = self.checkpoint, len(history.epochs)

    def write_result(self, result):
        """Add the result of the finished run to its last checkpoint.

        Args:
            result: Dict of what JSON can hold.

        Raises:
            CommandError: The file cannot be written.
        """

        def write(path):
            shutil.copyfile(self.checkpoint, path)
            checkpoint.add_result(path, result)

        self._replace(self.checkpoint, write)

    def write_model(self, model):
        """Write the trained model.

        Raises:
            CommandError: The file cannot be written.
        """
        self._replace(self.model, model.save)

    def write_settings(self, settings, choice):
        """Write the settings as JSON, with the micro-batch that was chosen.

        Args:
            settings: `Settings`.
            choice: As in `write_checkpoint`.

        Raises:
            CommandError: The file cannot be written.
        """
        plan = {} if choice is None else {"microbatch_plan": choice}
        text = json.dumps(dataclasses.asdict(settings) | plan, indent=2) + "\n"
        self._replace(self.settings, lambda path: path.write_text(text, encoding="utf-8"))

    def write_history(self, epochs, metrics):
        """Write one line per epoch as CSV.

        Args:
            epochs: List of dicts with an `UpdateHistory`'s rows of epochs.
            metrics: Names of the metrics to write, beside the loss and the noise scale, if it
                was measured.

        Raises:
            CommandError: The file cannot be written.
        """
        logged = ("loss", *metrics)
        noise = [name for name in NOISE if epochs and name in epochs[-1]]
        fields = ("epoch", *logged, *(f"val_{name}" for name in logged), "updates", *noise)

        def write(path):
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fields, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(epochs)

        self._replace(self.history, write)

    def stopped(self):
        """Return the `Stopped` that says how to go on from what was read or written."""
        if self._whole is None:
            return Stopped()
        path = shlex.quote(str(self.path))
        return Stopped(f"Resume with: tensorflow-ranger train --resume --output {path}")

    def has_checkpoint(self):
        """Return whether there is a checkpoint, whole or not."""
        return any(path.exists() for path in self._checkpoints)

    @property
    def _checkpoints(self):
        return self.checkpoint, self.previous

    @property
    def _files(self):
        return *self._checkpoints, *self.results

    def _replace(self, path, write):
        # The name keeps its ending, which Keras goes by.
        temporary = path.with_name(f".{path.name}")
        with writing(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


class ReadOnlyRunDirectory(RunDirectory):
    """The directory of a run for processes that must not write there.

    Where several processes hold a model they must save it together. What these ones save is
    deleted.
    """

    @contextlib.contextmanager
    def begun(self, force=False):
        """Leave it to the process that writes."""
        yield

    def write_checkpoint(self, model, settings, history, choice, measured=None):
        """Take part in saving the run's state."""
        self._replace(self.checkpoint, model.save)

    def _replace(self, path, write):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / path.name)


def _remove_empty(folders):
    for folder in folders:
        with contextlib.suppress(OSError):  # what was written is there
            folder.rmdir()


@contextlib.contextmanager
def writing(path):
    """Turn an error of the operating system into one line.

    Args:
        path: What is written.

    Raises:
        CommandError: It cannot be.
    """
    try:
        yield
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror or error}. "
            "Choose a writable place with --output"
        ) from error
