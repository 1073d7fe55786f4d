"""A run that is killed, whenever that is, ends where an undisturbed one does."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.application import runs
from tests.faults import command
from tests.marks import first

EPOCHS = 3
MICRO_BATCHES = EPOCHS * runs.MICRO_BATCHES
_random = random.Random(0)
# Micro-batches, and seconds later: in a micro-batch, in an evaluation, while a checkpoint is
# written, or between these. The last ones would be over before the seconds are.
MOMENTS = [
    (_random.randrange(1, MICRO_BATCHES - 5), round(_random.uniform(0, 0.05), 4)) for _ in range(20)
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the directory of a run that nobody killed. Only read it."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert runs.train(directory, "--epochs", str(EPOCHS)) == 0
    return directory


@pytest.fixture(scope="module")
def forked():
    """Return a function that calls another in a new process and returns its exit code.

    A server imports Keras once, does nothing with it, and is forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([command.__name__])

    def call(function, *arguments):
        process = context.Process(target=function, args=arguments)
        process.start()
        process.join(timeout=300)
        return process.exitcode

    return call


@pytest.mark.thorough  # tests/application/test_resume.py kills one in every suite
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}+{moment[1]}s")
def test_the_only_process(moment, forked, undisturbed, tmp_path):
    arguments = ["train", "--epochs", str(EPOCHS), "--output", str(tmp_path)]
    assert forked(command.run, arguments, moment) == -signal.SIGKILL
    assert not (tmp_path / "model.keras").exists()
    assert runs.train(tmp_path, "--resume") == 0
    runs.assert_same_run(tmp_path, undisturbed)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [(), runs.MICROBATCH], ids=["window", "microbatch"])
def test_one_of_two_processes(options, float64, tmp_path):
    # In the second epoch; in the middle of a window, where there are any.
    micro_batches = 3 if options else runs.MICRO_BATCHES + 2
    # In float32 another order of the sum may choose another maximum where images are pooled.
    (tmp_path / "keras.json").write_text('{"floatx": "float64"}', encoding="utf-8")

    def train(directory, *launcher, **environment):
        command = ["-m", "tests.faults.command", "train", "--output", tmp_path / directory]
        done = subprocess.run(
            [sys.executable, *launcher, *command, *options, "--epochs", str(EPOCHS)],
            env={
                **os.environ,
                "KERAS_BACKEND": keras.config.backend(),
                "KERAS_HOME": str(tmp_path),
                "JAX_ENABLE_X64": "1",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    train("undisturbed")
    told = train(
        "run",
        *("-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"),
        *("--master-addr=127.0.0.1", f"--master-port={runs.free_ports(3)}"),
        KILLED=f"{micro_batches} 0 1",
        GLOO_SOCKET_IFNAME="lo",
    )
    assert told.count("process 0 writes the run\nTraining") == 1
    assert told.count("process 0 writes the run\nResuming after epoch 1") == 1
    for name in ("model.keras", "checkpoint.keras"):
        values = runs.variables(tmp_path / "run" / name)
        expected = runs.variables(tmp_path / "undisturbed" / name)
        for value, wanted in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-8)


@first
def test_a_checkpoint_cut_in_half(undisturbed, tmp_path, capsys):
    assert runs.train(tmp_path, "--epochs", "2") == 0
    checkpoint = tmp_path / "checkpoint.keras"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert runs.train(tmp_path, "--resume", "--epochs", str(EPOCHS)) == 0
    note, resuming, *_ = capsys.readouterr().out.splitlines()
    assert note.startswith(f"{checkpoint} is no checkpoint that can be resumed: ")
    assert note.endswith(". Continuing from checkpoint.previous.keras")
    assert resuming.startswith("Resuming after epoch 1: ")
    runs.assert_same_run(tmp_path, undisturbed)
