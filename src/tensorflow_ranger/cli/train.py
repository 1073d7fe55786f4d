"""``tensorflow-ranger train``."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from tensorflow_ranger.cli import curves, optimizers, options
from tensorflow_ranger.cli.errors import STOPPED, CommandError
from tensorflow_ranger.cli.frameworks import import_keras, silent_stderr
from tensorflow_ranger.cli.run_directory import RunDirectory
from tensorflow_ranger.cli.settings import LEARNING_RATES, Settings
from tensorflow_ranger.cli.tasks import digits

MAXIMUM_SEED = 2**32 - 1


def train(
    context: typer.Context,
    optimizer: Annotated[
        str,
        typer.Option(
            help="What makes the updates: sgd (with momentum), adamw (Adam, weight decay apart), "
            "radam (Adam with a rectified start), ranger (radam, Lookahead, centralized "
            "gradients), ranger21 (ranger on adamw, with clipping, normalization and a learning "
            "rate that rises and falls), or another by its Keras name: adam, lion, ...",
            metavar="NAME",
        ),
    ] = Settings.optimizer,
    lookahead: Annotated[
        bool,
        typer.Option(
            "--lookahead",
            help="Every 5 updates, put the weights halfway back to where they were.",
        ),
    ] = Settings.lookahead,
    centralize: Annotated[
        bool,
        typer.Option(
            "--centralize",
            help="Subtract from the gradient of each unit its mean over the unit's inputs.",
        ),
    ] = Settings.centralize,
    accumulation_steps: Annotated[
        int,
        typer.Option(
            help="Micro-batches per update.",
            metavar="K",
            parser=options.integer("--accumulation-steps", 1),
        ),
    ] = Settings.accumulation_steps,
    batch_size: Annotated[
        int,
        typer.Option(
            help="Images per micro-batch; with --microbatch, images per update.",
            metavar="N",
            parser=options.integer("--batch-size", 1),
        ),
    ] = Settings.batch_size,
    microbatch: Annotated[
        str | None,
        typer.Option(
            help="Train on whole batches, SIZE images at a time; auto finds the fastest SIZE that "
            "fits, and repeats a run up to rounding.",
            metavar="SIZE",
            parser=options.integer("--microbatch", 1, or_else=options.AUTO),
            show_default="each batch is a micro-batch",
        ),
    ] = None,
    memory_limit: options.MemoryLimit = Settings.memory_limit,
    epochs: Annotated[
        int,
        typer.Option(
            help="Passes over the images, counted from the beginning.",
            metavar="N",
            parser=options.integer("--epochs", 1),
        ),
    ] = Settings.epochs,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the optimizer.",
            metavar="RATE",
            parser=options.learning_rate,
            show_default=", ".join(f"{rate} for {name}" for name, rate in LEARNING_RATES.items())
            + ", else the optimizer's own",
        ),
    ] = Settings.learning_rate,
    backend: options.Backend = Settings.backend,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the initial weights and of the order of the images.",
            metavar="N",
            parser=options.integer("--seed", 0, MAXIMUM_SEED),
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
            "Only --epochs may differ, to train on, and --memory-limit.",
        ),
    ] = False,
):
    """Train the founding CNN on 5,000 real handwritten digits.

    The gradients of K micro-batches make one update, or, with --microbatch, those of one batch,
    which then need not fit the memory as a whole. DIR gets the trained model (model.keras),
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
        stored, record, choice = directory.read()
        settings = stored.resume(given, epochs_done=len(record["epochs"]))
    else:
        settings, record, choice = Settings.new(given), {}, None
        directory.prepare()
    _run(directory, settings.on(import_keras(settings.backend)), record, choice)


def _run(directory, settings, record, choice):
    from tensorflow_ranger.training.shuffled_batches import ShuffledBatches
    from tensorflow_ranger.training.update_history import UpdateHistory

    (x, y), held_out = digits.load()
    history = UpdateHistory(**record)
    # Saving and loading make Keras import TensorFlow, where it is installed, on any backend.
    with silent_stderr():
        model = directory.load_model() if record else _compiled_model(settings, len(x))
        directory.write_checkpoint(model, settings, history, choice)
    directory.write_settings(settings, choice)
    directory.write_history(history.epochs)
    if settings.microbatch is not None:
        _use_micro_batches(model, settings)
    print(
        f"{f'Resuming after epoch {len(history.epochs)}' if record else 'Training'}: "
        f"{settings.optimizer_in_words} on {settings.backend}, "
        f"{settings.batch_in_words} make one update"
    )
    batches = ShuffledBatches(x, y, settings.batch_size, settings.seed)
    _fit(model, batches, held_out, directory, settings, history, choice)
    directory.write_model(model)
    choice = _choice(model, choice)
    directory.write_settings(settings, choice)
    _draw(directory, model, settings, history, len(x))
    if choice is not None:
        print(f"Micro-batches of {choice['chosen']}. {choice['reason']}")
    accuracy = model.evaluate(*held_out, verbose=0, return_dict=True)["accuracy"]
    print(
        f"Held-out accuracy {accuracy:.1%}. Model, history, curves and settings are in "
        f"{directory.path}: {', '.join(file.name for file in directory.results)}"
    )


def _fit(model, batches, held_out, directory, settings, history, choice):
    import keras

    def keep(epoch, logs):
        directory.write_checkpoint(model, settings, history, _choice(model, choice))
        directory.write_history(history.epochs)

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
    except MemoryError as error:
        raise CommandError(str(error)) from error


def _use_micro_batches(model, settings):
    from tensorflow_ranger.training.microbatch import microbatch

    microbatch(model, settings.microbatch, memory_limit=settings.memory_limit)


def _choice(model, last):
    """Return what is recorded of the micro-batch in use, or `last` before there is one."""
    plan = getattr(model, "microbatch_plan", None)
    if plan is None or plan.chosen is None:
        return last
    return {"chosen": plan.chosen, "reason": plan.reason}


def _draw(directory, model, settings, history, samples):
    import keras

    updates = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    title = (
        f"Handwritten digits: {settings.optimizer_in_words}, {settings.batch_in_words} per update "
        f"({settings.backend}, seed {settings.seed})"
    )
    point = "micro-batch" if settings.microbatch is None else "batch"
    figure = curves.draw(history, updates, samples, settings.batch_size, title, point)
    directory.write_curves(figure)


def _compiled_model(settings, samples):
    model = digits.build_model(settings.seed)
    optimizer = optimizers.build(settings, settings.total_updates(samples))
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
