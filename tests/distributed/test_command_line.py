"""``tensorflow-ranger train`` in two processes: one run, one output, the weights of one process."""

import subprocess

import keras
import numpy as np
import pytest

from tests.application import runs
from tests.distributed import launch

# The window that the last batch is in stays open, and is in the checkpoint.
OPTIONS = ("--batch-size", "300", "--accumulation-steps", "4", "--epochs", "1")


@pytest.mark.thorough
@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="takes even batches only: there are 20,555 texts"
)
def test_two_processes_trim_padding(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("reviews", "--batch-size", "300", "--microbatch", "32", "--epochs", "1")
    run_in_two(two, *options, "--trim-padding")
    assert runs.run("train", "--output", str(one), *options) == 0
    values, expected = (runs.variables(run / "model.keras") for run in (two, one))
    for value, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-6)


@pytest.mark.thorough
def test_two_processes_train_as_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    outputs = run_in_two(two, *OPTIONS)
    assert runs.run("train", "--output", str(one), *OPTIONS) == 0
    for name in ("model.keras", "checkpoint.keras"):
        values, expected = runs.variables(two / name), runs.variables(one / name)
        assert max(np.abs(value).max() for value in expected) > 0.1
        for value, wanted in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-6)
    history = [np.loadtxt(run / "history.csv", delimiter=",", skiprows=1) for run in (one, two)]
    np.testing.assert_allclose(history[1], history[0], atol=1e-5)
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
    output = "".join(outputs)
    words, training, *_, held_out = output.splitlines()
    assert words == f"2 processes of {launcher()}; process 0 writes the run"
    assert training.startswith("Training: ")
    assert held_out.startswith("Held-out accuracy ")
    for once in (words, "Training: ", "Held-out"):
        assert output.count(once) == 1, once
    if len(outputs) > 1:
        assert outputs[1] == ""


def launcher():
    names = {"torch": "torchrun", "jax": "keras.distribution", "tensorflow": "TF_CONFIG"}
    return names[keras.config.backend()]


def run_in_two(directory, *options):
    """Run the command in two processes, as users do; return what each writes to the terminal.

    torchrun shows what its processes write in one stream.
    """
    train = ["-m", "tensorflow_ranger_cli", "train", "--output", str(directory), *options]
    if keras.config.backend() == "torch":
        return finish([launch.start(launch.torchrun(*train), subprocess.PIPE)])
    backend = keras.config.backend()
    places = launch.keras_distribution() if backend == "jax" else launch.tf_config()
    return finish([launch.start(train, subprocess.PIPE, **place) for place in places])


def finish(processes):
    """Return the output of each process; they must all succeed, and write no error."""
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
            assert "Error" not in errors
            outputs.append(output)
    except subprocess.TimeoutExpired:
        pytest.fail("two processes did not finish")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return outputs
