"""``tensorflow-ranger predict``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tensorflow_ranger_cli import options
from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.keras_backend import import_keras
from tensorflow_ranger_cli.runs.checkpoint import UNREADABLE
from tensorflow_ranger_cli.runs.run_directory import RunDirectory
from tensorflow_ranger_cli.runs.settings import Settings
from tensorflow_ranger_cli.silence import silent_stderr
from tensorflow_ranger_cli.tasks import registry


def predict(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a finished run.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="What to use the model on: an image of a digit (digits, mnist), or a text, in "
            "a file or in quotes (reviews, reviews-multitask, and brown, which continues it).",
        ),
    ],
    backend: options.Backend = None,
):
    """Use a trained model on your own files or texts.

    Prints a line for each FILE. Images may be dark on light or light on dark, of any size, with one
    digit on each.
    """
    directory = RunDirectory(path)
    task = _task(directory)
    if task.predict is None:
        able = [name for name in registry.names() if registry.find(name).predict is not None]
        raise UsageError(
            f"predict must be given a run of {', '.join(able)}: got {task.name}. Train one of these"
        )
    import_keras(backend)
    for given, line in zip(inputs, task.predict(_load(directory), inputs), strict=True):
        print(f"{given}: {line}")


def _task(directory):
    try:
        settings = json.loads(directory.settings.read_text(encoding="utf-8"))
        name = settings.get("task", Settings.task)  # runs of before there were several have none
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"DIR must be the directory of a run: got {directory.path} ({error}). "
            "Train one with: tensorflow-ranger train"
        ) from error
    if not directory.model.is_file():
        raise UsageError(
            f"DIR must hold a finished run: got {directory.path}, without "
            f"{directory.model.name}. Continue it with: tensorflow-ranger train --resume --output "
            f"{directory.path}"
        )
    return registry.find(name)


def _load(directory):
    import keras

    try:
        # Saving and loading make Keras import TensorFlow, where it is installed, on any backend.
        with silent_stderr():
            return keras.saving.load_model(directory.model, compile=False)
    except UNREADABLE as error:
        raise CommandError(
            f"{directory.model} cannot be loaded: {error}. Put back a whole copy, or train anew"
        ) from error
