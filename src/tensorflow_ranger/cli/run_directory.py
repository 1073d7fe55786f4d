"""The directory of a run: its results, and the checkpoint it goes on from.

The checkpoint is one file, so one rename makes it whole: a Keras model file, optimizer and
unfinished window included, with the settings and the history in a member that Keras ignores. The
other files are made from it and never read.
"""

import contextlib
import csv
import dataclasses
import json
import zipfile
import zlib

from tensorflow_ranger.cli.errors import CommandError, UsageError
from tensorflow_ranger.cli.settings import Settings

FIELDS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "updates")
STATE = "tensorflow_ranger.json"
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    NotImplementedError,  # a compression or version that zipfile does not know
    zipfile.BadZipFile,
    zlib.error,
)


class RunDirectory:
    """The files of one run.

    Args:
        path: `pathlib.Path` of the directory.
    """

    def __init__(self, path):
        self.path = path
        self.checkpoint = path / "checkpoint.keras"
        self.model = path / "model.keras"
        self.history = path / "history.csv"
        self.curves = path / "curves.png"
        self.settings = path / "settings.json"
        self.results = (self.model, self.history, self.curves, self.settings)

    def prepare(self):
        """Make the directory for a new run.

        Raises:
            UsageError: It holds a run already.
            CommandError: It cannot be made or written to.
        """
        with _writing(self.path):
            present = [f.name for f in (self.checkpoint, *self.results) if f.exists()]
            if present:
                raise UsageError(
                    f"{self.path} already holds {', '.join(present)}. "
                    "Go on with that run by --resume, or choose another --output"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()

    def read(self):
        """Return what the checkpoint says of its run.

        Returns:
            ``(settings, record, choice)``: the `Settings`, the arguments of its `UpdateHistory`,
            and the micro-batch that was chosen, as `write_checkpoint` took it.

        Raises:
            UsageError: There is no checkpoint.
            CommandError: The checkpoint is not whole, or is none of ours.
        """
        try:
            with zipfile.ZipFile(self.checkpoint) as archive:
                broken = archive.testzip()
                if broken is not None:
                    raise zipfile.BadZipFile(f"{broken} does not match its checksum")
                state = json.loads(archive.read(STATE))
            return Settings(**state["settings"]), state["record"], state.get("microbatch_plan")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"nothing to resume: {self.checkpoint} does not exist. "
                "Begin a run there by leaving --resume out"
            ) from error
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def load_model(self):
        """Return the model as the checkpoint holds it, compiled, in the middle of its window.

        Raises:
            CommandError: Keras cannot make a model of it.
        """
        import keras

        try:
            return keras.saving.load_model(self.checkpoint)
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def write_checkpoint(self, model, settings, history, choice):
        """Put the run's state into the place of the last checkpoint, all or nothing.

        Args:
            model: The compiled model.
            settings: `Settings`.
            history: `UpdateHistory`.
            choice: Dict with the micro-batch "chosen" and the "reason", or None.

        Raises:
            CommandError: The file cannot be written.
        """
        state = {
            "settings": dataclasses.asdict(settings),
            "record": {"epochs": history.epochs, "micro_batches": history.micro_batches},
            "microbatch_plan": choice,
        }

        def write(path):
            model.save(path)
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(STATE, json.dumps(state))

        _replace(self.checkpoint, write)

    def write_model(self, model):
        """Write the trained model.

        Raises:
            CommandError: The file cannot be written.
        """
        _replace(self.model, model.save)

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
        _replace(self.settings, lambda path: path.write_text(text, encoding="utf-8"))

    def write_history(self, epochs):
        """Write one line per epoch as CSV.

        Args:
            epochs: List of dicts with the keys `FIELDS`.

        Raises:
            CommandError: The file cannot be written.
        """

        def write(path):
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(epochs)

        _replace(self.history, write)

    def write_curves(self, figure):
        """Write a matplotlib figure as PNG.

        Raises:
            CommandError: The file cannot be written.
        """
        _replace(self.curves, lambda path: figure.savefig(path, dpi=150))

    def _unreadable(self, error):
        return CommandError(
            f"{self.checkpoint} is no checkpoint that can be resumed: {error}. "
            "Put back a whole copy, or begin a new run with another --output"
        )


def _replace(path, write):
    # The name keeps its ending, which Keras and matplotlib go by.
    temporary = path.with_name(f".{path.name}")
    with _writing(path):
        write(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def _writing(path):
    try:
        yield
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror or error}. "
            "Free or choose a place that can be, by --output"
        ) from error
