"""Short runs of `tensorflow-ranger train`, in this process and in others."""

import contextlib
import dataclasses
import functools
import os
import socket
import subprocess
import sys
from unittest import mock

import keras
import numpy as np

import tensorflow_ranger  # noqa: F401 - registers the optimizers of saved models
from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.tasks import digits

MICRO_BATCHES = 7  # in an epoch of 224 images by 32, so windows of 4 span the epochs
MICROBATCH = ("--batch-size", "112", "--microbatch", "32")  # two batches of 3 * 32 + 16
# The words of the error for a memory limit that is too low. JAX knows a step's memory before it
# runs; elsewhere the process is looked at, which holds more than the smallest limit at its start.
NOTHING_FITS = (
    "must hold one sample at a time"
    if keras.config.backend() == "jax"
    else "in use before the first batch"
)
_load = functools.cache(digits.load)


def few_digits():
    """Return 224 training images and 32 held-out ones: a shape each to compile."""
    (x, y), (held_out_x, held_out_y) = _load()
    return (x[:224], y[:224]), (held_out_x[:32], held_out_y[:32])


def use_few_digits():
    """Let this process train on few digits."""
    digits.TASK = dataclasses.replace(digits.TASK, load=few_digits)


def train(directory, *options):
    """Run ``train --output directory`` on few digits; return the exit code."""
    few = dataclasses.replace(digits.TASK, load=few_digits)
    with mock.patch.object(digits, "TASK", few):
        return run("train", "--output", str(directory), *options)


def run(*arguments):
    """Run the command line on this process' backend; return the exit code."""
    # A command sets the backend for its process, which here is that of all tests.
    environment = {"KERAS_BACKEND": keras.config.backend()}
    with mock.patch.dict(os.environ, environment):
        return main(list(arguments))


def process(*arguments, before="", after="", **environment):
    """Run the command line in a process of its own; return the `CompletedProcess`.

    Args:
        *arguments: Arguments of ``tensorflow-ranger``.
        before: Python code to run first.
        after: Python code to run when the command has ended.
        **environment: Environment variables. KERAS_BACKEND is that of this process.
    """
    code = (
        f"import sys\nsys.argv = {['tensorflow-ranger', *map(str, arguments)]!r}\n{before}\n"
        f"from tensorflow_ranger_cli.main import main\ncode = main()\n{after}\nsys.exit(code)"
    )
    environment = {"KERAS_BACKEND": keras.config.backend(), **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def variables(path):
    """Return the values of a saved model and of its optimizer."""
    model = keras.saving.load_model(path)
    everything = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in everything]


def assert_same_run(directory, expected):
    """Assert that two runs ended with the same bits."""
    assert (directory / "history.csv").read_bytes() == (expected / "history.csv").read_bytes()
    for name in ("model.keras", "checkpoint.keras"):
        for value, wanted in zip(
            variables(directory / name), variables(expected / name), strict=True
        ):
            np.testing.assert_array_equal(value, wanted)


def free_ports(count):
    """Return a port that nobody listens to on 127.0.0.1, as on the `count - 1` after it."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
        return first


def contents(directory):
    """Return the bytes of all files under `directory`."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_one_error(capsys, *parts):
    """Assert that stderr holds one line, an error with all of `parts`."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    for part in parts:
        assert part in lines[0]
