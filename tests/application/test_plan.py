"""``tensorflow-ranger plan``, from the file to the table."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from tensorflow_ranger import microbatch
from tensorflow_ranger.batch_size.plan import Candidate
from tensorflow_ranger.batch_size.size_policy import SearchedSize
from tests.application import runs
from tests.marks import first

REGISTERED = "cli_plan"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.keras"


def save(path, *compile_arguments):
    """Save a small model with two outputs to `path`, compiled if there are arguments for it."""
    x = keras.Input((4,))
    outputs = [keras.layers.Dense(3, activation="softmax")(x), keras.layers.Dense(1)(x)]
    model = keras.Model(x, outputs)
    if compile_arguments:
        model.compile(*compile_arguments)
    model.save(path)


def plan(path, *options):
    """Run ``plan path --batch-size 4``; return the exit code."""
    return runs.run("plan", str(path), "--batch-size", "4", *options)


def assert_table(lines):
    """Assert that `lines` are a plan whose search has ended, with one row chosen."""
    assert lines[0].split() == ["micro-batch", "memory", "per", "sample", "chosen"]
    *rows, reason = lines[1:]
    sizes = [int(row.split()[0]) for row in rows]
    assert sizes[-1] == 4
    assert set(sizes) <= {1, 2, 4}
    (chosen,) = [row.split()[0] for row in rows if row.endswith("yes")]
    assert reason.startswith(f"{chosen} of 4 samples at a time are the fastest")


def test_the_table_has_a_row_chosen_and_the_file_stays(path, capsys):
    save(path, "adam", ["sparse_categorical_crossentropy", "mse"])
    before = runs.contents(path.parent)
    assert plan(path, "--memory-limit", "64GB", "--backend", keras.config.backend()) == 0
    captured = capsys.readouterr()
    assert_table(captured.out.splitlines())
    assert not captured.err
    assert runs.contents(path.parent) == before


@pytest.mark.skipif(keras.config.backend() != "jax", reason="only JAX knows what a size needs")
def test_the_table_has_segments_where_memory_stops_the_sizes(path, capsys, monkeypatch):
    layers = [keras.layers.Dense(64, activation="gelu") for _ in range(6)]
    model = keras.Sequential([keras.Input((128, 64)), *layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.save(path)
    microbatch(model, "auto").train_on_batch(np.ones((4, 128, 64)), np.ones((4, 128, 1)))
    (whole,) = model.microbatch_plan.candidates
    succeeded = SearchedSize.succeeded

    def told(policy, size, seconds=None, memory=None):  # small micro-batches take longer
        succeeded(policy, size, None if seconds is None else 1 / size, memory)

    monkeypatch.setattr(SearchedSize, "succeeded", told)
    assert plan(path, "--memory-limit", str(whole.memory - 1)) == 0
    head, *rows, reason, repeated = capsys.readouterr().out.splitlines()
    assert head.split() == ["micro-batch", "segments", "memory", "per", "sample", "chosen"]
    (chosen,) = [row.split() for row in rows if row.endswith("yes")]
    assert (chosen[0], chosen[1].isdigit()) == ("4", True)
    assert reason.startswith("4 of 4 samples at a time are the fastest per sample within ")
    assert f"with layers run again in {chosen[1]} segment" in reason
    assert repeated.startswith("The backward pass runs ")


@first
def test_a_model_saved_without_compile_is_compiled(path, capsys):
    save(path)
    assert plan(path) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{path} was saved without compile: measured with sgd and mse.\n"
    assert_table(captured.out.splitlines())


@first
def test_the_plan_in_json_is_one_document(path, capsys):
    save(path)
    assert plan(path, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["batch"] == 4
    assert made["chosen"] in [candidate["size"] for candidate in made["candidates"]]
    assert set(made["candidates"][0]) == {field.name for field in dataclasses.fields(Candidate)}


@first
def test_the_model_of_a_run_can_be_planned(finished, capsys):
    before = runs.contents(finished)
    assert plan(finished / "model.keras") == 0
    assert_table(capsys.readouterr().out.splitlines())
    assert runs.contents(finished) == before


def test_a_memory_limit_that_nothing_fits_is_named(path, capsys):
    keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000)]).save(path)
    assert plan(path, "--memory-limit", "1MB") == 1
    runs.assert_one_error(capsys, "memory_limit", "1.0 MB", runs.NOTHING_FITS)


@first
def test_a_file_that_is_no_model_is_named(path, capsys):
    path.write_text("no model")
    assert plan(path) == 1
    runs.assert_one_error(capsys, f"{path} cannot be loaded", "Write it by model.save")


@first
def test_a_model_of_unknown_layers_is_named(path, capsys):
    class Unknown(keras.layers.Layer):
        pass

    keras.Sequential([keras.Input((4,)), Unknown()]).save(path)
    assert plan(path) == 1
    runs.assert_one_error(capsys, f"{path} cannot be loaded", "Unknown")


@first
def test_a_length_that_is_missing_is_named(path, capsys):
    keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2)]).save(path)
    assert plan(path) == 2
    runs.assert_one_error(capsys, "(None, None, 3)", "--length")


@keras.saving.register_keras_serializable(REGISTERED)
def picky(y_true, y_pred):
    raise ValueError("targets must be boxes")


@first
def test_a_loss_that_takes_other_targets_is_named(path, capsys):
    save(path, "sgd", picky)
    assert plan(path) == 1
    runs.assert_one_error(capsys, "does not train on random data", "targets must be boxes")


@first
def test_ctrl_c_ends_it_with_a_word(path, capsys, monkeypatch):
    def interrupt(self, *arguments, **keywords):
        raise KeyboardInterrupt

    save(path)
    monkeypatch.setattr(keras.Model, "fit", interrupt)
    assert plan(path) == 130
    assert capsys.readouterr().err == "Stopped.\n"
