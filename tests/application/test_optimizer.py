"""The optimizers of ``tensorflow-ranger train``."""

import json

import keras
import pytest

from tensorflow_ranger import Lookahead, RAdam, Ranger, Ranger21, RangerOptimizer
from tensorflow_ranger_cli.runs.optimizer import build_optimizer
from tensorflow_ranger_cli.runs.settings import Settings
from tests.application import runs
from tests.marks import first

CLASSES = {
    "sgd": keras.optimizers.SGD,
    "adamw": keras.optimizers.AdamW,
    "radam": RAdam,
    "ranger": Ranger,
    "ranger21": Ranger21,
}
LEARNING_RATES = {"sgd": 0.03, "adamw": 0.001, "radam": 0.003, "ranger": 0.003, "ranger21": 0.003}
OWN_LOOKAHEAD = {"ranger": Lookahead(k=6), "ranger21": Lookahead(k=5)}
BOTH = ("--lookahead", "--centralize")
# Three updates an epoch: two epochs are enough for Lookahead, whose k is 5 or 6.
SMALL = ("--batch-size", "80", "--accumulation-steps", "1")


def saved_optimizer(directory):
    return keras.saving.load_model(directory / "model.keras").optimizer


def settings(directory):
    return json.loads((directory / "settings.json").read_text())


def assert_is(optimizer, name):
    assert isinstance(optimizer, CLASSES[name])
    # Ranger is an RAdam, too, and Keras' own classes are others on each backend.
    assert type(optimizer).__name__ == CLASSES[name].__name__


@pytest.fixture(scope="module")
def ranger21(tmp_path_factory):
    """Return the directory of an undisturbed run of three epochs of ranger21. Only read it."""
    directory = tmp_path_factory.mktemp("ranger21") / "run"
    assert runs.train(directory, "--optimizer", "ranger21", "--epochs", "3") == 0
    return directory


@first
@pytest.mark.parametrize("name", CLASSES)
def test_every_optimizer_trains(name, tmp_path, capsys):
    assert runs.train(tmp_path, "--optimizer", name, "--epochs", "1") == 0
    backend = keras.config.backend()
    assert f"Training: {name} on {backend}, 4 micro-batches" in capsys.readouterr().out
    window = saved_optimizer(tmp_path)
    inner = window.inner_optimizer
    assert type(window) is RangerOptimizer
    assert_is(inner, name)
    assert (window.accumulation_steps, int(window.iterations)) == (4, 2)
    assert (window.lookahead, window.centralize) == (None, False)
    if name in ("radam", *OWN_LOOKAHEAD):
        assert inner.lookahead == OWN_LOOKAHEAD.get(name)
        assert inner.centralize is (name in OWN_LOOKAHEAD)
    assert float(inner.learning_rate) == pytest.approx(LEARNING_RATES[name])


@first
def test_lookahead_and_centralization_are_the_windows(tmp_path, capsys):
    assert runs.train(tmp_path, "--optimizer", "radam", "--epochs", "1", *BOTH) == 0
    words = "Training: radam with Lookahead and centralized gradients on "
    assert words in capsys.readouterr().out
    window = saved_optimizer(tmp_path)
    assert type(window) is RangerOptimizer
    inner = window.inner_optimizer
    assert type(inner) is RAdam
    assert (window.lookahead, window.centralize) == (Lookahead(), True)
    assert (inner.lookahead, inner.centralize) == (None, False)
    recorded = settings(tmp_path)
    assert (recorded["lookahead"], recorded["centralize"]) == (True, True)


@first
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "added", [(), ("lookahead",), ("centralize",), ("lookahead", "centralize")], ids=" ".join
)
@pytest.mark.parametrize("microbatch", [None, 8, "auto"])
def test_what_is_built(name, added, microbatch):
    if name in OWN_LOOKAHEAD and added:
        pytest.skip("refused: it has them already")
    given = {"optimizer": name, "learning_rate": 0.004, "microbatch": microbatch}
    asked = Settings.new({**given, **dict.fromkeys(added, True)})
    optimizer = build_optimizer(asked, total_updates=70)
    is_window = isinstance(optimizer, RangerOptimizer)
    plain = optimizer.inner_optimizer if is_window else optimizer
    is_ours = name in ("radam", *OWN_LOOKAHEAD)
    assert_is(plain, name)
    assert is_window == (microbatch is None or (not is_ours and added != ()))
    if is_window:
        assert optimizer.accumulation_steps == (4 if microbatch is None else 1)
    if is_window or is_ours:
        assert optimizer.lookahead == (
            Lookahead() if "lookahead" in added else None if is_window else OWN_LOOKAHEAD.get(name)
        )
        expected = "centralize" in added or (not is_window and name in OWN_LOOKAHEAD)
        assert optimizer.centralize is expected
    assert float(optimizer.learning_rate) == pytest.approx(0.004)
    if name == "sgd":
        assert plain.momentum == 0.9
    if name == "ranger21":
        assert plain.total_updates == 70


@first
def test_names_are_read_as_keras_reads_its_own():
    asked = Settings.new({"optimizer": "RAdam"})
    assert asked.learning_rate == LEARNING_RATES["radam"]
    assert type(build_optimizer(asked, 1).inner_optimizer) is RAdam


@first
@pytest.mark.parametrize(("name", "added"), [("sgd", BOTH), ("ranger", ())])
def test_micro_batches_train_as_windows_do(name, added, tmp_path):
    # With equal micro-batches a window of them and a batch of as many samples are the same.
    options = ("--optimizer", name, *added, "--epochs", "2")
    assert runs.train(tmp_path / "windows", *options, *SMALL) == 0
    assert runs.train(tmp_path / "fused", *options, "--batch-size", "80", "--microbatch", "40") == 0
    fused, windows = saved_optimizer(tmp_path / "fused"), saved_optimizer(tmp_path / "windows")
    assert int(fused.iterations) == int(windows.iterations) == 6
    assert isinstance(fused, RangerOptimizer) == (name == "sgd")
    # Two sums of the same numbers. Updates move the weights by about the learning rate, 3e-3.
    for value, wanted in zip(
        runs.variables(tmp_path / "fused/model.keras")[:8],
        runs.variables(tmp_path / "windows/model.keras")[:8],
        strict=True,
    ):
        assert abs(value - wanted).max() < 1e-4


@first
@pytest.mark.parametrize(
    ("given", "updates"),
    [
        ({"epochs": 3, "batch_size": 32, "accumulation_steps": 4}, 6),  # 21 / 4, with a rest
        ({"epochs": 3, "batch_size": 32, "accumulation_steps": 7}, 3),
        ({"epochs": 2, "batch_size": 100, "accumulation_steps": 2}, 3),  # 3 an epoch, one short
        ({"epochs": 2, "batch_size": 100, "accumulation_steps": 50}, 1),
        ({"epochs": 2, "batch_size": 100, "microbatch": 10}, 6),
    ],
)
def test_updates_are_counted_over_windows(given, updates):
    assert Settings.new(given).total_updates(224) == updates


@first
def test_ranger21_is_told_its_updates(ranger21):
    window = saved_optimizer(ranger21)
    assert window.inner_optimizer.total_updates == 6
    assert int(window.iterations) == 6  # and those are the ones it makes


@first
def test_with_microbatch_ranger21_is_told_its_batches(tmp_path):
    options = ("--optimizer", "ranger21", "--epochs", "2", *runs.MICROBATCH)
    assert runs.train(tmp_path, *options) == 0
    optimizer = saved_optimizer(tmp_path)
    assert type(optimizer) is Ranger21
    assert (optimizer.total_updates, int(optimizer.iterations)) == (4, 4)


@first
def test_a_stopped_run_resumes_exactly_with_what_was_added(tmp_path, capsys):
    assert runs.train(tmp_path / "whole", *SMALL, *BOTH, "--epochs", "2") == 0
    assert runs.train(tmp_path / "stopped", *SMALL, *BOTH, "--epochs", "1") == 0
    capsys.readouterr()
    assert runs.train(tmp_path / "stopped", "--resume", "--epochs", "2") == 0
    words = "Resuming after epoch 1: sgd with Lookahead and centralized gradients on"
    assert words in capsys.readouterr().out
    runs.assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    recorded = settings(tmp_path / "stopped")
    assert recorded == settings(tmp_path / "whole")
    assert (recorded["lookahead"], recorded["centralize"]) == (True, True)
    assert runs.train(tmp_path / "stopped", "--resume", *BOTH) == 0  # given again, they agree


@first
def test_a_stopped_run_of_ranger21_resumes_exactly(ranger21, tmp_path, monkeypatch):
    # It is stopped as a user stops it: a run of one epoch would have a schedule of its own.
    fit = keras.Model.fit

    def fit_one_epoch(self, *arguments, epochs, **options):
        fit(self, *arguments, epochs=1, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", fit_one_epoch)
        assert runs.train(tmp_path, "--optimizer", "ranger21", "--epochs", "3") == 130
    assert not (tmp_path / "model.keras").exists()
    assert runs.train(tmp_path, "--resume", "--epochs", "3") == 0
    runs.assert_same_run(tmp_path, ranger21)


@first
@pytest.mark.parametrize("epochs", ["2", "4"])
def test_ranger21_keeps_the_epochs_its_learning_rate_was_planned_for(epochs, ranger21, capsys):
    before = runs.contents(ranger21)
    assert runs.train(ranger21, "--resume", "--epochs", epochs) == 2
    runs.assert_one_error(capsys, "--epochs must stay 3", "ranger21 rises and falls", epochs)
    assert runs.contents(ranger21) == before


@first
@pytest.mark.parametrize("option", BOTH)
def test_what_is_built_in_is_said_on_resuming_too(option, ranger21, capsys):
    before = runs.contents(ranger21)
    assert runs.train(ranger21, "--resume", option) == 2
    runs.assert_one_error(capsys, f"{option} is built into ranger21")
    assert runs.contents(ranger21) == before


@first
def test_settings_of_before_there_was_anything_to_add_are_read():
    stored = {"optimizer": "adam", "accumulation_steps": 2, "epochs": 1}
    resumed = Settings(**stored).resume({}, epochs_done=1)
    assert (resumed.lookahead, resumed.centralize) == (False, False)
