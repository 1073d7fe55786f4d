"""``tensorflow-ranger plan``."""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from tensorflow_ranger_cli import options
from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.keras_backend import import_keras
from tensorflow_ranger_cli.runs.checkpoint import UNREADABLE
from tensorflow_ranger_cli.silence import silent_stderr

UNCOMPILED = {"optimizer": "sgd", "loss": "mse"}


def plan(
    path: Annotated[Path, typer.Argument(metavar="MODEL", help="File that model.save wrote.")],
    batch_size: Annotated[
        int,
        typer.Option(
            help="Samples per update.",
            metavar="N",
            parser=options.integer("--batch-size", 1),
            show_default=False,
        ),
    ],
    memory_limit: options.MemoryLimit = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="Size of the inputs' axes that MODEL leaves open, such as a sequence's.",
            metavar="N",
            parser=options.integer("--length", 1),
        ),
    ] = None,
    backend: options.Backend = None,
    as_json: options.Json = False,
):
    """Measure which micro-batch size trains a model fastest.

    Trains MODEL with batches of N samples on random data, in memory only: the file stays as it is.
    Prints the memory and the time of each size, and which is the fastest that fits.
    """
    if not path.is_file():
        raise UsageError(f"{path} must be a Keras model file: got none. Write it by model.save")
    import_keras(backend)
    model = _load(path)
    was_compiled = model.compiled
    if not was_compiled:
        model.compile(**UNCOMPILED)
    try:
        _measure(model, batch_size, memory_limit, length)
    except CommandError:
        raise
    except MemoryError as error:
        raise CommandError(str(error)) from error
    except Exception as error:  # whatever the model's own layers and losses raise
        raise CommandError(
            f"{path} does not train on random data: got {type(error).__name__}, {error}. "
            "Plan in Python with data of your own: tensorflow_ranger.microbatch(model, 'auto')"
        ) from error
    if not was_compiled:
        note = f"{path} was saved without compile: measured with sgd and mse."
        print(note, file=sys.stderr)
    made = model.microbatch_plan
    print(json.dumps(dataclasses.asdict(made), indent=2) if as_json else made)


def _load(path):
    import keras

    try:
        # Saving and loading make Keras import TensorFlow, where it is installed, on any backend.
        with silent_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the optimizer's state, which changes no size
            return keras.saving.load_model(path)
    except UNREADABLE as error:
        raise CommandError(
            f"{path} cannot be loaded: {error}. Write it by model.save, with layers that are "
            "Keras' own or registered by a package that is imported"
        ) from error


def _measure(model, batch_size, memory_limit, length):
    """Train `model` until its plan is made."""
    import keras

    from tensorflow_ranger import microbatch
    from tensorflow_ranger_cli.commands.random_batch import random_batch

    batch = random_batch(model, batch_size, length)

    def batches():
        while True:
            yield batch

    def stop_when_planned(batch, logs):
        model.stop_training = not model.microbatch_plan.measuring

    microbatch(model, options.AUTO, memory_limit=memory_limit)
    model.fit(
        batches(),
        shuffle=False,  # else Keras warns that it does not shuffle what is generated
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop_when_planned)],
    )
