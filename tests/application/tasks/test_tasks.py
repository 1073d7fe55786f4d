"""What holds for every task."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.runs.settings import Settings
from tensorflow_ranger_cli.tasks import registry
from tests.application import slices
from tests.marks import first, first_but, thorough_but

NAMES = registry.names()
SIZES = {  # training and held-out samples
    "digits": (4000, 1000),
    "digits-contrastive": (12_000, 1000),
    "mnist": (60_000, 10_000),
    "spoken-digits": (2500, 500),
    "spoken-strings": (4000, 500),
    "reviews": (20_555, 3000),
    "reviews-multitask": (20_555, 3000),
    "brown": (45_498, 2369),
}


@first
def test_names():
    assert NAMES == [
        "digits",
        "brown",
        "digits-contrastive",
        "mnist",
        "reviews",
        "reviews-multitask",
        "spoken-digits",
        "spoken-strings",
    ]


@first
def test_the_list_in_json_is_one_document(capsys):
    assert main(["tasks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [task["name"] for task in listed] == NAMES
    assert listed[0]["figures"] == [{"name": "accuracy", "bar": 0.95, "at_least": True}]
    assert Settings(**listed[0]["settings"]) == Settings.new({})


@pytest.mark.once
@pytest.mark.parametrize("name", thorough_but(["digits", "reviews"], NAMES))
def test_data_is_split_the_same_way_each_time(name):
    parts, again = slices.loaded(name), registry.find(name).load()
    for part, twin in zip(parts, again, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, part, twin)
    sizes = [{len(array) for array in keras.tree.flatten(part)} for part in parts]
    assert sizes == [{size} for size in SIZES[name]]


@pytest.mark.once
@pytest.mark.parametrize("name", thorough_but(["digits", "reviews"], NAMES))
def test_no_held_out_sample_is_trained_on(name):
    (x, _), (held_out, _) = slices.loaded(name)
    for part, other in zip(keras.tree.flatten(x), keras.tree.flatten(held_out), strict=True):
        seen = {sample.tobytes() for sample in part}
        assert not any(sample.tobytes() in seen for sample in other)


@pytest.mark.parametrize("name", first_but(["digits", "reviews"], NAMES))
def test_the_model_is_a_function_of_the_seed(name):
    task = registry.find(name)
    model, twin = task.build_model(3), task.build_model(3)
    other = task.build_model(4)
    kernels = 0
    for value, same, different in zip(
        model.get_weights(), twin.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, same)
        if np.ptp(value) and value.ndim > 1:
            kernels += 1
            assert not np.array_equal(value, different)
    assert kernels
    arrays = [value for value in model.get_weights() if np.ptp(value)]
    pairs = [(a, b) for i, a in enumerate(arrays) for b in arrays[:i] if a.shape == b.shape]
    assert not any(np.array_equal(a, b) for a, b in pairs)


@first
@pytest.mark.parametrize("name", NAMES)
def test_settings_of_a_task_are_good_ones(name):
    settings = Settings.new({"task": name})
    task = registry.find(name)
    assert task.name == name
    assert settings.learning_rate
    if name != "digits":
        assert isinstance(settings.microbatch, int)
        assert settings.microbatch < settings.batch_size


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        pytest.param("reviews", marks=first),
        *thorough_but([], [name for name in NAMES if name not in ("digits", "reviews")]),
    ],
)
def test_a_task_trains_resumes_and_judges(name, tmp_path, capsys):
    task, directory = registry.find(name), tmp_path / "run"
    assert slices.train(name, directory, "--epochs", "1") == 0
    assert slices.train(name, directory, "--resume", "--epochs", "2", named=False) == 0
    output = capsys.readouterr().out
    assert "Resuming after epoch 1: " in output
    for figure in task.figures:
        assert f"{figure.name} " in output.splitlines()[-1]
    rows = (directory / "history.csv").read_text().splitlines()
    logged = ("loss", *task.metrics)
    assert rows[0].split(",") == ["epoch", *logged, *(f"val_{name}" for name in logged), "updates"]
    assert len(rows) == 3
    assert np.isfinite([float(field) for row in rows[1:] for field in row.split(",")]).all()
    assert json.loads((directory / "settings.json").read_text())["task"] == name
    # Without `compile` a model needs none of the task's own objects.
    model = keras.saving.load_model(directory / "model.keras", compile=False)
    assert model.count_params() == task.build_model(0).count_params()


@first
@pytest.mark.parametrize("name", ["reviews-multitask"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(name, tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    assert slices.train(name, whole, "--epochs", "2") == 0
    assert slices.train(name, stopped, "--epochs", "1") == 0
    assert slices.train(name, stopped, "--resume", "--epochs", "2") == 0
    for file in ("history.csv", "settings.json"):
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()
    models = [keras.saving.load_model(run / "model.keras") for run in (stopped, whole)]
    for value, same in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(value, same)


@first
def test_a_figure_knows_its_bar():
    figure = registry.find("digits").figures[0]
    assert figure.passes(figure.bar)
    assert not figure.passes(figure.bar - 0.01)
    less = dataclasses.replace(figure, at_least=False)
    assert less.passes(figure.bar)
    assert not less.passes(figure.bar + 0.01)
