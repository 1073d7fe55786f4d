"""The numbers of a report."""

import json
import shlex
from unittest import mock

import numpy as np
import pytest

from tensorflow_ranger_cli.commands import train
from tensorflow_ranger_cli.report import recorded_run
from tensorflow_ranger_cli.runs.run_directory import NOISE
from tensorflow_ranger_cli.runs.settings import Settings
from tensorflow_ranger_cli.tasks.data import files
from tests.application import runs
from tests.application.pages import history
from tests.marks import first


@first
def test_the_numbers_are_those_of_the_run(finished):
    run = recorded_run.read(finished)
    np.testing.assert_array_equal(run.updates, [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(run.batches, [128] * 5 + [32])
    np.testing.assert_array_equal(run.seen, [128, 256, 384, 512, 640, 672])
    rows = history(finished)
    updates, seen, losses = run.training("loss")
    assert (updates, seen) == ([1, 2, 3, 4, 5, 6], run.seen.tolist())
    mean = np.mean([float(row["loss"]) for row in rows])
    np.testing.assert_allclose(np.average(losses, weights=run.batches), mean, rtol=1e-5)
    updates, seen, losses = run.held_out("loss")
    assert (updates, seen) == ([1, 3, 5], [224, 448, 672])
    assert losses == [float(row["val_loss"]) for row in rows]


def test_a_run_measures_itself(finished, noisy):
    run = recorded_run.read(finished)
    assert [row["epoch"] for row in run.measured["epochs"]] == [1, 2, 3]
    assert run.samples == run.measured["samples"] == 224
    assert run.seconds is not None
    assert 0 < run.seconds < 1
    assert run.memory is not None
    assert 10**7 < run.memory < 10**12
    assert run.skipped == 0
    assert [candidate["size"] for candidate in recorded_run.read(noisy).measured["candidates"]] == [
        32
    ]


@first
@pytest.mark.parametrize("options", [runs.MICROBATCH, ("--accumulation-steps", "2")], ids=" ".join)
def test_the_noise_scale_is_recorded_and_goes_on_after_a_stop(options, tmp_path, capsys):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert runs.train(straight, *options, "--noise-scale", "--epochs", "2") == 0
    advice = recorded_run.read(straight).measured["noise_advice"]
    assert advice in capsys.readouterr().out.splitlines()
    assert runs.train(resumed, *options, "--noise-scale", "--epochs", "1") == 0
    assert runs.train(resumed, "--resume", "--epochs", "2") == 0
    assert json.loads((resumed / "settings.json").read_text())["noise_scale"] is True
    rows = history(straight)
    assert list(rows[0])[-3:] == list(NOISE)
    assert 0 < float(rows[-1]["noise_scale_low"]) <= float(rows[-1]["noise_scale"])
    runs.assert_same_run(resumed, straight)
    assert recorded_run.read(resumed).measured["noise_advice"] == advice


@first
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--optimizer", "adamw", "--accumulation-steps", "3", "--seed", "7"),
        ("--learning-rate", "1e-05", "--lookahead", "--centralize", "--noise-scale"),
        ("brown",),
        ("brown", "--accumulation-steps", "2"),
        ("reviews", "--optimizer", "lion"),
        ("reviews", "--trim-padding"),
        ("--batch-size", "64", "--microbatch", "auto", "--memory-limit", "4GB"),
        ("--batch-size", "64", "--microbatch", "8", "--noise-scale"),
    ],
    ids=" ".join,
)
def test_the_command_repeats_the_run(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parsed("train", *options, "--output", "first")
    words = shlex.split(recorded_run.command(settings, "a place/again"))
    assert words.pop(0) == "tensorflow-ranger"
    assert words[-2:] == ["--output", "a place/again"]
    assert parsed(*words) == settings


def parsed(*arguments):
    """Return the `Settings` that a command line means."""
    with (
        mock.patch.object(files.Downloaded, "locate"),
        mock.patch.object(train, "Run") as run,
    ):
        assert runs.run(*arguments) == 0
    (settings,) = [given for given in run.call_args.args if isinstance(given, Settings)]
    return settings


@first
def test_long_curves_are_thinned():
    values = np.arange(10_001.0)
    assert recorded_run.thinned(values[:1000]) == list(range(1000))
    last, means = recorded_run.thinned(values), recorded_run.thinned(values, np.mean)
    assert len(last) == len(means) <= recorded_run.MOST_POINTS
    assert last[:2] == [10, 21]
    assert last[-1] == 10_000
    assert means[0] == 5.0
