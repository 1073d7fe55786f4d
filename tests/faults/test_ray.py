"""A run under Ray Train that loses a worker ends where a run that keeps it does."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_train.py"
EPOCHS = 5
SECONDS = 300  # that a run may take

pytestmark = pytest.mark.faults


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the example; what still runs at the end is ended."""
    if importlib.util.find_spec("ray") is None:
        pytest.fail("Ray is not installed: expected the package ray. Run: pip install '.[ray]'")
    running = []

    def start(storage):
        storage.mkdir()
        environment = {
            **os.environ,
            "HOME": str(tmp_path),  # where Ray puts the token of its cluster
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # everything on 127.0.0.1
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # how often Ray asks for checkpoints
        }
        with (storage / "output").open("w") as output:
            command = [sys.executable, EXAMPLE, "--storage", storage, "--epochs", str(EPOCHS)]
            run = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        running.append(run)
        return run

    yield start
    for run in running:
        run.terminate()  # on this, Ray ends its processes
        run.wait(timeout=60)


def test_a_run_that_loses_a_worker_ends_with_the_weights_of_one_that_keeps_it(start, tmp_path):
    kept, lost = tmp_path / "kept", tmp_path / "lost"
    wait_for_end(start(kept), kept)

    run = start(lost)
    wait_until(lambda: len(checkpoints(lost)) >= 2 or run.poll() is not None)
    assert run.poll() is None, output(lost)
    os.kill(workers(run)[-1], signal.SIGKILL)
    assert len(checkpoints(lost)) < EPOCHS, "killed too late"
    wait_for_end(run, lost)

    assert epochs_saved(kept) == list(range(EPOCHS))
    assert epochs_saved(lost).count(0) == 1, "it began again from the start"
    assert_same_model(checkpoints(lost)[-1], checkpoints(kept)[-1])


def workers(run):
    """Return the ids of the run's training processes, which Ray gives a title."""
    command = ["ps", "-A", "-o", "pid=,ppid=,args="]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in table.splitlines()]
    parents = {int(row[0]): int(row[1]) for row in rows}

    def is_of_run(process):
        while process in parents and process != run.pid:
            process = parents[process]
        return process == run.pid

    training = [int(row[0]) for row in rows if row[2:] and row[2].startswith("ray::RayTrainWorker")]
    found = [process for process in training if is_of_run(process)]
    assert found, f"no training process descends from {run.pid}:\n{table}"
    return found


def wait_for_end(run, storage):
    wait_until(lambda: run.poll() is not None)
    assert run.returncode == 0, output(storage)


def wait_until(condition):
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up, f"not done after {SECONDS} s"
        time.sleep(0.05)


def checkpoints(storage):
    """Return the models saved so far, the last one last."""
    return sorted(storage.glob("*/checkpoint_*/model.keras"))


def epochs_saved(storage):
    """Return the epoch of each checkpoint, in the order of saving."""
    metadata = [path.with_name(".metadata.json").read_text() for path in checkpoints(storage)]
    return [json.loads(text)["epoch"] for text in metadata]


def output(storage):
    return (storage / "output").read_text()


def assert_same_model(path, expected_path):
    import tensorflow_ranger  # noqa: F401 - registers the optimizer that is loaded

    model = keras.saving.load_model(path)
    expected = keras.saving.load_model(expected_path)
    values = [*model.variables, *model.optimizer.variables]
    expected_values = [*expected.variables, *expected.optimizer.variables]
    for value, expected_value in zip(values, expected_values, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(value),
            keras.ops.convert_to_numpy(expected_value),
            atol=1e-6,
            err_msg=value.path,
        )
