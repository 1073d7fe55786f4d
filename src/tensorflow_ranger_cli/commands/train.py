"""``tensorflow-ranger train``."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from tensorflow_ranger_cli import options
from tensorflow_ranger_cli.errors import UsageError
from tensorflow_ranger_cli.keras_backend import import_keras
from tensorflow_ranger_cli.runs import launch
from tensorflow_ranger_cli.runs.run import Run
from tensorflow_ranger_cli.runs.run_directory import ReadOnlyRunDirectory, RunDirectory
from tensorflow_ranger_cli.runs.settings import LEARNING_RATES, Settings
from tensorflow_ranger_cli.silence import silent_stdout
from tensorflow_ranger_cli.tasks import registry

OF_TASK = f"TASK's; {{}} for {registry.DEFAULT}"
OPTIMIZERS = ("sgd", "adamw", "radam", "ranger", "ranger21")  # those that the help describes
MAXIMUM_SEED = 2**32 - 1


def train(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            help="What to train: " + ", ".join(registry.names()) + ".",
            metavar="TASK",
            autocompletion=options.completion(registry.names()),
        ),
    ] = Settings.task,
    batch_size: Annotated[
        int,
        typer.Option(
            help="Samples per micro-batch; with --microbatch, samples per update.",
            metavar="N",
            parser=options.integer("--batch-size", 1),
            show_default=OF_TASK.format(Settings.batch_size),
            rich_help_panel=options.BATCH,
        ),
    ] = Settings.batch_size,
    microbatch: Annotated[
        str | None,
        typer.Option(
            help="Train on whole batches, SIZE samples at a time; auto finds the fastest SIZE that "
            "fits, and repeats a run up to rounding.",
            metavar="SIZE",
            parser=options.integer("--microbatch", 1, or_else=options.AUTO),
            show_default=OF_TASK.format("each batch is a micro-batch"),
            rich_help_panel=options.BATCH,
        ),
    ] = None,
    accumulation_steps: Annotated[
        int,
        typer.Option(
            help="Micro-batches per update.",
            metavar="K",
            parser=options.integer("--accumulation-steps", 1),
            rich_help_panel=options.BATCH,
        ),
    ] = Settings.accumulation_steps,
    memory_limit: options.MemoryLimit = Settings.memory_limit,
    trim_padding: Annotated[
        bool,
        typer.Option(
            "--trim-padding",
            help="Trim each micro-batch of padded samples, such as texts, to its longest one. The "
            "report tells how much padding that leaves out.",
            rich_help_panel=options.BATCH,
        ),
    ] = Settings.trim_padding,
    noise_scale: Annotated[
        bool,
        typer.Option(
            "--noise-scale",
            help="Measure how large a batch the task can use, epoch by epoch, for the history and "
            "for tensorflow-ranger report.",
            rich_help_panel=options.BATCH,
        ),
    ] = Settings.noise_scale,
    optimizer: Annotated[
        str,
        typer.Option(
            help="What makes the updates: sgd (with momentum), adamw (Adam, weight decay apart), "
            "radam (Adam with a rectified start), ranger (radam, Lookahead, centralized "
            "gradients), ranger21 (ranger on adamw, with clipping, normalization and a learning "
            "rate that rises and falls), or another by its Keras name: adam, lion, ...",
            metavar="NAME",
            autocompletion=options.completion(OPTIMIZERS),
            show_default=OF_TASK.format("sgd"),
            rich_help_panel=options.OPTIMIZER,
        ),
    ] = Settings.optimizer,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the optimizer.",
            metavar="RATE",
            parser=options.learning_rate,
            show_default="TASK's; with another optimizer, "
            + ", ".join(f"{rate} for {name}" for name, rate in LEARNING_RATES.items())
            + ", else the optimizer's own",
            rich_help_panel=options.OPTIMIZER,
        ),
    ] = Settings.learning_rate,
    lookahead: Annotated[
        bool,
        typer.Option(
            "--lookahead",
            help="Every 5 updates, put the weights halfway back to where they were.",
            rich_help_panel=options.OPTIMIZER,
        ),
    ] = Settings.lookahead,
    centralize: Annotated[
        bool,
        typer.Option(
            "--centralize",
            help="Subtract from the gradient of each unit its mean over the unit's inputs.",
            rich_help_panel=options.OPTIMIZER,
        ),
    ] = Settings.centralize,
    epochs: Annotated[
        int,
        typer.Option(
            help="Passes over the samples, counted from the beginning.",
            metavar="N",
            parser=options.integer("--epochs", 1),
            show_default=OF_TASK.format(Settings.epochs),
            rich_help_panel=options.TRAINING,
        ),
    ] = Settings.epochs,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the initial weights and of the order of the samples.",
            metavar="N",
            parser=options.integer("--seed", 0, MAXIMUM_SEED),
            rich_help_panel=options.TRAINING,
        ),
    ] = Settings.seed,
    backend: options.Backend = Settings.backend,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the results.",
            metavar="DIR",
            show_default=f"runs/TASK: runs/{registry.DEFAULT}",
            rich_help_panel=options.RESULTS,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in DIR exactly where it stopped, with its settings. "
            "Only --epochs, to train on, and --memory-limit may differ.",
            rich_help_panel=options.RESULTS,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the run that DIR holds.", rich_help_panel=options.RESULTS
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", help="Print warnings and errors only.", rich_help_panel=options.RESULTS
        ),
    ] = False,
):
    """Train a network on real data.

    Without TASK, that is a small CNN on 4,000 handwritten digits. The others are listed, with the
    defaults of each, by tensorflow-ranger tasks.

    The gradients of K micro-batches make one update, or, with --microbatch, those of one batch,
    which then need not fit the memory as a whole. DIR gets the trained model (model.keras),
    the history (history.csv), the settings (settings.json), and a checkpoint to resume from.
    """
    sources = {name: context.get_parameter_source(name) for name in Settings.names()}
    given = {
        name: context.params[name]
        for name, source in sources.items()
        if source is not None and source.name != "DEFAULT"
    }
    registry.find(task)
    if resume and force:
        raise UsageError(
            "--resume continues a run and --force replaces it: got both. Leave one out"
        )
    launched = launch.detect(os.environ)
    kind = RunDirectory if launched.process == 0 else ReadOnlyRunDirectory
    directory = kind(Path("runs") / task if output is None else output)
    with silent_stdout() if quiet or launched.process else contextlib.nullcontext():
        try:
            _train(launched, directory, given, resume, force)
        except KeyboardInterrupt:
            raise directory.stopped() from None


def _train(launched, directory, given, resume, force):
    if resume or (launched.restarts and directory.has_checkpoint()):
        settings, record, choice = _stored(directory, given, resume)
    else:
        settings, record, choice = Settings.new(given), {}, None
    task = registry.find(settings.task)
    task.data.locate()
    with contextlib.nullcontext() if record else directory.begun(force):
        settings = settings.on(import_keras(settings.backend))
        with launch.joined(launched, settings.backend) as engine:
            Run(task, directory, settings, record, choice, launched, engine).train()


def _stored(directory, given, resume):
    """Return what the checkpoint holds, with the settings that the run goes on with.

    A launcher that starts a run again gives it the options of a new one.
    """
    stored, record, choice = directory.read()
    if directory.note is not None:
        print(directory.note)
    if resume:
        return stored.resume(given, epochs_done=len(record["epochs"])), record, choice
    new = Settings.new(given)
    if new != (stored if new.backend else stored.on(None)):
        raise UsageError(
            f"{directory.path} holds a run with other settings than the one started again. "
            "Continue that run with --resume, or choose another --output"
        )
    return stored, record, choice
