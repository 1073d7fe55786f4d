"""Runs of any task on a slice of its data."""

import dataclasses
import functools
import importlib
from unittest import mock

import keras

from tensorflow_ranger_cli.tasks import registry
from tests.application import runs

TRAINING, HELD_OUT = 96, 32
BATCH = ("--batch-size", "48", "--microbatch", "32")


@functools.cache
def loaded(name):
    """Return what the task loads. Only read it."""
    return registry.find(name).load()


def slice_of(name, training=TRAINING, held_out=HELD_OUT):
    """Return the first samples of a task."""
    parts = zip(loaded(name), (training, held_out), strict=True)
    first, last = (keras.tree.map_structure(lambda a, n=n: a[:n], part) for part, n in parts)
    return first, last


def sliced(name):
    """Return the task on a slice, compiled without XLA where that takes seconds."""
    task = registry.find(name)
    loaded(name)  # before another task takes its place
    load = functools.partial(slice_of, name)

    def compile_arguments():
        return {**task.compile_arguments(), "jit_compile": keras.config.backend() == "jax"}

    return dataclasses.replace(task, load=load, compile_arguments=compile_arguments)


def train(name, directory, *options, named=True):
    """Run ``train name`` on a slice; return the exit code.

    Args:
        name: Name of the task.
        directory: The run's.
        *options: Options of the command line.
        named: Whether the command line names the task.
    """
    module = importlib.import_module(f"tensorflow_ranger_cli.tasks.{name.replace('-', '_')}")
    arguments = ["train", *([name] if named else []), "--output", str(directory), *options]
    if "--resume" not in options:
        arguments += BATCH
    with mock.patch.object(module, "TASK", sliced(name)):
        return runs.run(*arguments)
