"""``tensorflow-ranger train``."""

import importlib.util
import math
from pathlib import Path
from typing import Annotated

import typer

from tensorflow_ranger.cli import curves
from tensorflow_ranger.cli.errors import CommandError, UsageError
from tensorflow_ranger.cli.frameworks import BACKENDS, import_keras, silent_stderr
from tensorflow_ranger.cli.run_directory import RunDirectory
from tensorflow_ranger.cli.settings import SGD_LEARNING_RATE, Settings
from tensorflow_ranger.cli.tasks import digits

MAXIMUM_SEED = 2**32 - 1
STOPPED = 130  # what shells expect of a program that Ctrl-C ended


def _integer(option, minimum, maximum=None):
    wanted = f"an integer >= {minimum}" + (f" and <= {maximum}" if maximum else "")

    def parse(value):
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < minimum or (maximum and number > maximum):
            raise UsageError(f"{option} must be {wanted}: got {value}")
        return number

    return parse


def _learning_rate(value):
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"--learning-rate must be a finite number > 0: got {value}")
    return rate


def _backend(value):
    if value not in BACKENDS:
        raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}: got {value}")
    return value


def train(
    context: typer.Context,
    optimizer: Annotated[
        str,
        typer.Option(
            help="Inner optimizer by its Keras name: sgd, adam, adamw, lion, ...", metavar="NAME"
        ),
    ] = Settings.optimizer,
    accumulation_steps: Annotated[
        int,
        typer.Option(
            help="Micro-batches per update.",
            metavar="K",
            parser=_integer("--accumulation-steps", 1),
        ),
    ] = Settings.accumulation_steps,
    batch_size: Annotated[
        int,
        typer.Option(
            help="Images per micro-batch.", metavar="N", parser=_integer("--batch-size", 1)
        ),
    ] = Settings.batch_size,
    epochs: Annotated[
        int,
        typer.Option(
            help="Passes over the images, counted from the beginning.",
            metavar="N",
            parser=_integer("--epochs", 1),
        ),
    ] = Settings.epochs,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the inner optimizer.",
            metavar="RATE",
            parser=_learning_rate,
            show_default=f"{SGD_LEARNING_RATE} for sgd, else the optimizer's own",
        ),
    ] = Settings.learning_rate,
    backend: Annotated[
        str | None,
        typer.Option(
            help=f"Keras backend: {', '.join(BACKENDS)}.",
            metavar="NAME",
            parser=_backend,
            show_default="KERAS_BACKEND, else tensorflow",
        ),
    ] = Settings.backend,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the initial weights and of the order of the images.",
            metavar="N",
            parser=_integer("--seed", 0, MAXIMUM_SEED),
        ),
    ] = Settings.seed,
    output: Annotated[Path, typer.Option(help="Directory for the results.", metavar="DIR")] = Path(
        "runs/digits"
    ),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in DIR exactly where it stopped, with its settings. "
            "Only --epochs may differ, to train on.",
        ),
    ] = False,
):
    """Train the founding CNN on 5,000 real handwritten digits.

    The gradients of K micro-batches make one update. DIR gets the trained model (model.keras),
    the history (history.csv), a picture of loss and accuracy with the updates marked
    (curves.png), the settings (settings.json), and a checkpoint to resume from.
    """
    sources = {name: context.get_parameter_source(name) for name in Settings.names()}
    given = {
        name: context.params[name]
        for name, source in sources.items()
        if source is not None and source.name != "DEFAULT"
    }
    _require_packages()
    directory = RunDirectory(output)
    if resume:
        stored, history = directory.read()
        settings = stored.resume(given, epochs_done=len(history["epochs"]))
    else:
        directory.prepare()
        settings, history = Settings.new(given), {}
    _run(directory, settings.on(import_keras(settings.backend)), history)


def _run(directory, settings, record):
    import keras

    from tensorflow_ranger.training.shuffled_batches import ShuffledBatches
    from tensorflow_ranger.training.update_history import UpdateHistory

    (x, y), held_out = digits.load()
    history = UpdateHistory(**record)
    # Saving and loading make Keras import TensorFlow, where it is installed, on any backend.
    with silent_stderr():
        model = directory.load_model() if record else _compiled_model(settings)
        directory.write_checkpoint(model, settings, history)
    directory.write_settings(settings)
    directory.write_history(history.epochs)
    batches = ShuffledBatches(x, y, settings.batch_size, settings.seed)

    def keep(epoch, logs):
        directory.write_checkpoint(model, settings, history)
        directory.write_history(history.epochs)

    print(
        f"{f'Resuming after epoch {len(history.epochs)}' if record else 'Training'}: "
        f"{settings.optimizer} on {settings.backend}, "
        f"{settings.accumulation_steps} micro-batches of {settings.batch_size} make one update"
    )
    try:
        model.fit(
            batches,
            shuffle=False,  # the batches are in an order of their own
            initial_epoch=len(history.epochs),
            epochs=settings.epochs,
            validation_data=held_out,
            callbacks=[
                batches.order_callback(),
                history,
                keras.callbacks.LambdaCallback(on_epoch_end=keep),  # fit then closes the window
            ],
        )
    except KeyboardInterrupt:
        print(f"\nStopped. Go on by: tensorflow-ranger train --resume --output {directory.path}")
        raise typer.Exit(STOPPED) from None
    directory.write_model(model)
    updates = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    directory.write_curves(
        curves.draw(history, updates, len(x), settings.batch_size, _title(settings))
    )
    accuracy = model.evaluate(*held_out, verbose=0, return_dict=True)["accuracy"]
    print(
        f"Held-out accuracy {accuracy:.1%}. Model, history, curves and settings are in "
        f"{directory.path}: {', '.join(file.name for file in directory.results)}"
    )


def _compiled_model(settings):
    from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer

    model = digits.build_model(settings.seed)
    try:
        optimizer = RangerOptimizer(
            settings.learning_rate,
            accumulation_steps=settings.accumulation_steps,
            inner=settings.optimizer,
        )
    except (KeyError, TypeError, ValueError) as error:  # Keras' KeyError: one that wraps another
        raise UsageError(
            "--optimizer must name a Keras optimizer, such as sgd, adam or adamw: "
            f"got {settings.optimizer!r}"
        ) from error
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    return model


def _require_packages():
    digits.data_file()
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            "the curves need matplotlib, which is not installed. "
            'Run: pip install "tensorflow-ranger[examples]"'
        )


def _title(settings):
    return (
        f"Handwritten digits: {settings.optimizer}, {settings.accumulation_steps} micro-batches "
        f"of {settings.batch_size} per update ({settings.backend}, seed {settings.seed})"
    )
