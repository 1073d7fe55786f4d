"""``tensorflow-ranger train``, from the images to the files."""

import csv
import importlib.util
import json

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tensorflow_ranger_cli.main import main
from tests.application import runs
from tests.marks import first


def history(directory):
    with (directory / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_results(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "checkpoint.keras",
        "checkpoint.previous.keras",
        "history.csv",
        "model.keras",
        "settings.json",
    }
    assert json.loads((finished / "settings.json").read_text()) == {
        "task": "digits",
        "optimizer": "sgd",
        "lookahead": False,
        "centralize": False,
        "accumulation_steps": 4,
        "batch_size": 32,
        "epochs": 3,
        "learning_rate": 0.03,
        "backend": keras.config.backend(),
        "seed": 0,
        "microbatch": None,
        "memory_limit": None,
        "trim_padding": False,
        "noise_scale": False,
    }


def test_the_history_has_a_line_for_each_epoch(finished):
    rows = history(finished)
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "updates"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    # Seven micro-batches an epoch, four an update: windows span the epochs.
    assert [int(row["updates"]) for row in rows] == [1, 3, 5]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_the_model_has_closed_its_window_and_the_checkpoint_has_not(finished):
    model = keras.saving.load_model(finished / "model.keras")
    checkpoint = keras.saving.load_model(finished / "checkpoint.keras")
    assert int(model.optimizer.iterations) == 6
    assert model.optimizer.pending_micro_batches == 0
    assert int(checkpoint.optimizer.iterations) == 5
    assert checkpoint.optimizer.pending_micro_batches == 1


@first
def test_options_reach_the_run(tmp_path, capsys):
    options = {
        "optimizer": "adamw",
        "accumulation_steps": 3,
        "batch_size": 50,
        "epochs": 1,
        "learning_rate": 0.002,
        "backend": keras.config.backend(),
        "seed": 5,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    directory = tmp_path / "new" / "run"
    assert runs.train(directory, *arguments) == 0
    captured = capsys.readouterr()
    settings = json.loads((directory / "settings.json").read_text())
    assert settings == {
        **options,
        "task": "digits",
        "lookahead": False,
        "centralize": False,
        "microbatch": None,
        "memory_limit": None,
        "trim_padding": False,
        "noise_scale": False,
    }
    model = keras.saving.load_model(directory / "model.keras")
    optimizer = model.optimizer
    assert isinstance(optimizer, RangerOptimizer)
    assert isinstance(optimizer.inner_optimizer, keras.optimizers.AdamW)
    assert optimizer.accumulation_steps == 3
    np.testing.assert_allclose(float(optimizer.learning_rate), 0.002, rtol=1e-6)
    (row,) = history(directory)
    assert int(row["updates"]) == 1  # of five micro-batches, before the end closes the window
    assert int(optimizer.iterations) == 2
    accuracy = model.evaluate(*runs.few_digits()[1], verbose=0, return_dict=True)["accuracy"]
    assert captured.out.splitlines()[-1] == (
        f"Held-out accuracy {accuracy:.1%}. Model, history and settings are in {directory}: "
        f"model.keras, history.csv, settings.json. Look at it with: tensorflow-ranger report "
        f"{directory}"
    )
    assert not captured.err


@first
def test_a_directory_that_holds_a_run_is_left_alone(stopped, capsys):
    before = runs.contents(stopped)
    assert runs.train(stopped) == 2
    runs.assert_one_error(capsys, str(stopped), "already holds checkpoint.keras", "--resume")
    assert runs.contents(stopped) == before


@first
def test_files_of_others_are_left_alone(tmp_path, capsys):
    (tmp_path / "history.csv").write_text("mine")
    assert runs.train(tmp_path) == 2
    runs.assert_one_error(capsys, "already holds history.csv")
    assert (tmp_path / "history.csv").read_text() == "mine"


@first
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_directory_that_cannot_be_written_is_named(resume, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert runs.train(tmp_path / "file" / "run", *resume) == (2 if resume else 1)
    runs.assert_one_error(capsys, str(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "mine"


@first
@pytest.mark.parametrize("name", ["sdg", "", "LossScaleOptimizer"])
def test_an_unknown_optimizer_is_named(name, tmp_path, capsys):
    assert runs.train(tmp_path / "run", "--optimizer", name) == 2
    runs.assert_one_error(capsys, "--optimizer must be radam, ranger, ranger21", f"got {name!r}")
    assert not list(tmp_path.iterdir())


@first
def test_a_misspelt_optimizer_is_told_the_nearest(tmp_path, capsys):
    assert runs.train(tmp_path / "run", "--optimizer", "Adamx") == 2
    runs.assert_one_error(capsys, "got 'Adamx'. Did you mean adam")


@first
def test_a_missing_package_is_named_before_training(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mlxtend" else find(name)
    )
    assert main(["train", "--output", str(tmp_path / "run")]) == 1
    runs.assert_one_error(capsys, "mlxtend", 'pip install "tensorflow-ranger[examples]"')
    assert not list(tmp_path.iterdir())
