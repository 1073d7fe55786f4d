"""A checkpoint: one file, so one rename makes it whole.

It is a Keras model file, optimizer and unfinished window included, with the settings and the
history in a member that Keras ignores, and what was measured in another: runs of the same settings
differ in that alone. The last checkpoint of a finished run holds the result as well.
"""

import dataclasses
import json
import zipfile
import zlib
from typing import Any, NamedTuple

from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.runs.settings import Settings

STATE = "tensorflow_ranger.json"
MEASUREMENTS = "tensorflow_ranger.measurements.json"
RESULT = "tensorflow_ranger.result.json"
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


class Checkpoint(NamedTuple):
    """What a checkpoint says of its run, beside the model.

    Attributes:
        settings: `Settings`.
        record: Arguments of the `UpdateHistory`.
        choice: Dict with the micro-batch "chosen" and the "reason", or None.
        seeds: States of the model's random generators.
        measured: Dict of what was measured, or None.
        result: Result of the finished run, or None.
    """

    settings: Settings
    record: dict[str, Any]
    choice: dict[str, Any] | None
    seeds: list
    measured: dict[str, Any] | None
    result: dict[str, Any] | None


def read(path):
    """Return the `Checkpoint` in the file at `path`.

    Raises:
        UsageError: There is no file.
        CommandError: It is damaged, or none of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"{broken} does not match its checksum")
            state = json.loads(archive.read(STATE))
            measured, result = (
                json.loads(archive.read(name)) if name in archive.namelist() else None
                for name in (MEASUREMENTS, RESULT)
            )
        return Checkpoint(
            Settings(**state["settings"]),
            state["record"],
            state.get("microbatch_plan"),
            state.get("seeds", []),
            measured,
            result,
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"nothing to resume: {path} does not exist. Begin a run there by leaving --resume out"
        ) from error
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def load_model(path, seeds):
    """Return the model of the checkpoint at `path`, compiled, amid its window.

    Args:
        path: `pathlib.Path` of the file.
        seeds: As `read` returned them.

    Raises:
        CommandError: Keras cannot make a model of it.
    """
    import keras

    try:
        model = keras.saving.load_model(path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    for variable, value in zip(_generators(model), seeds, strict=True):
        variable.assign(value)
    return model


def write(path, model, settings, history, choice, measured):
    """Write a checkpoint. The arguments are those of `RunDirectory.write_checkpoint`."""
    import keras

    state = {
        "settings": dataclasses.asdict(settings),
        "record": {"epochs": history.epochs, "micro_batches": history.micro_batches},
        "microbatch_plan": choice,
        "seeds": [keras.ops.convert_to_numpy(v.value).tolist() for v in _generators(model)],
    }
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(STATE, json.dumps(state))
        archive.writestr(MEASUREMENTS, json.dumps(measured))


def add_result(path, result):
    """Add the result of the finished run, a dict of what JSON can hold, to its checkpoint."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(RESULT, json.dumps(result))


def _generators(model):
    """Return the states of the model's random generators, which Keras does not save."""
    weights = {id(weight) for weight in model.non_trainable_weights}
    return [v for v in model.non_trainable_variables if id(v) not in weights]


def _unreadable(path, error):
    return CommandError(
        f"{path} is no checkpoint that can be resumed: {error}. "
        "Put back a whole copy, or begin a new run with another --output"
    )
