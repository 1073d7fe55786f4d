"""``tensorflow-ranger train --microbatch``: the same training, in smaller pieces."""

import json

import keras
import numpy as np
import pytest

from tests.application import runs
from tests.marks import first


def settings(directory):
    return json.loads((directory / "settings.json").read_text())


def weights(directory):
    model = keras.saving.load_model(directory / "checkpoint.keras")
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables]


def assert_same_weights(directory, expected):
    for value, wanted in zip(weights(directory), weights(expected), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-6)


# tests/equivalence/test_tasks.py shows it on every backend.
# In float32 another order of a sum may turn a tie of max pooling, which moves weights by 1e-4.
@first
@pytest.mark.usefixtures("float64")
def test_micro_batches_train_as_whole_batches_do(tmp_path):
    whole = ("--batch-size", "112", "--accumulation-steps", "1", "--epochs")
    assert runs.train(tmp_path / "parts", *runs.MICROBATCH, "--epochs", "2") == 0
    assert runs.train(tmp_path / "whole", *whole, "2") == 0
    assert runs.train(tmp_path / "shorter", *whole, "1") == 0
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    updates = zip(weights(tmp_path / "whole"), weights(tmp_path / "shorter"), strict=True)
    assert min(np.abs(new - old).max() for new, old in updates) > 1e-4


def test_a_run_records_its_micro_batch(micro_batched):
    assert settings(micro_batched) == {
        "task": "digits",
        "optimizer": "sgd",
        "lookahead": False,
        "centralize": False,
        "accumulation_steps": 1,
        "batch_size": 112,
        "epochs": 2,
        "learning_rate": 0.03,
        "backend": keras.config.backend(),
        "seed": 0,
        "microbatch": 32,
        "memory_limit": None,
        "trim_padding": False,
        "noise_scale": False,
        "microbatch_plan": {"chosen": 32, "reason": "The size was given."},
    }


def test_the_model_is_keras_own(micro_batched):
    optimizer = keras.saving.load_model(micro_batched / "model.keras").optimizer
    assert isinstance(optimizer, keras.optimizers.SGD)
    assert optimizer.momentum == 0.9
    assert int(optimizer.iterations) == 4


def test_a_stopped_run_resumes_exactly(micro_batched, tmp_path, capsys):
    assert runs.train(tmp_path, *runs.MICROBATCH, "--epochs", "1") == 0
    assert runs.train(tmp_path, "--resume", "--epochs", "2") == 0
    runs.assert_same_run(tmp_path, micro_batched)
    assert settings(tmp_path) == settings(micro_batched)
    lines = capsys.readouterr().out.splitlines()
    assert (
        f"Resuming after epoch 1: sgd on {keras.config.backend()}, "
        "112 images in micro-batches of 32 make one update"
    ) in lines
    assert lines[-2] == "Micro-batches of 32. The size was given."


@first
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--microbatch", "16"], "--microbatch contradicts the run to resume: got 16, the run has"),
        (["--microbatch", "auto"], "got auto, the run has 32"),
        (["--memory-limit", "4GB"], "--memory-limit is for --microbatch auto: got --microbatch 32"),
    ],
)
def test_a_run_keeps_its_micro_batch(options, message, micro_batched, capsys):
    before = runs.contents(micro_batched)
    assert runs.train(micro_batched, "--resume", *options) == 2
    runs.assert_one_error(capsys, message)
    assert runs.contents(micro_batched) == before


@first
@pytest.mark.usefixtures("float64")
def test_auto_chooses_a_size_and_trains_as_whole_batches_do(tmp_path, capsys):
    options = ("--batch-size", "16", "--epochs", "1")
    auto = tmp_path / "auto"
    assert runs.train(auto, *options, "--microbatch", "auto", "--memory-limit", "64GB") == 0
    lines = capsys.readouterr().out.splitlines()
    recorded = settings(auto)
    assert recorded["microbatch"] == "auto"
    assert recorded["memory_limit"] == 64 * 10**9
    assert recorded["microbatch_plan"]["chosen"] in {1, 2, 4, 8, 16}
    assert lines[-2] == "Micro-batches of {chosen}. {reason}".format(**recorded["microbatch_plan"])
    assert runs.train(tmp_path / "whole", *options, "--accumulation-steps", "1") == 0
    assert_same_weights(auto, tmp_path / "whole")
    assert runs.train(auto, "--resume") == 0  # trains nothing, so it measures nothing
    assert settings(auto) == recorded


@first
def test_a_memory_limit_that_nothing_fits_leaves_no_run(tmp_path, capsys):
    options = ("--batch-size", "8", "--epochs", "1", "--microbatch", "auto")
    place = tmp_path / "runs" / "digits"
    assert runs.train(place, *options, "--memory-limit", "1MB") == 1
    runs.assert_one_error(capsys, "memory_limit", "1.0 MB", runs.NOTHING_FITS)
    assert not list(tmp_path.iterdir())
