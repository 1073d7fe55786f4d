"""Where a new run begins: what it may replace, and what is left of it if it fails."""

import keras
import pytest

from tensorflow_ranger_cli.commands import train
from tensorflow_ranger_cli.runs.update_history import UpdateHistory
from tests.application import runs
from tests.marks import first

pytestmark = first


@pytest.fixture
def without_epochs(tmp_path, monkeypatch):
    """Return the directory of a run that was stopped in its first epoch."""

    def interrupt(self, logs=None):
        raise KeyboardInterrupt

    directory = tmp_path / "without_epochs"
    with monkeypatch.context() as patch:
        patch.setattr(UpdateHistory, "on_train_begin", interrupt)
        assert runs.train(directory, "--epochs", "3") == 130
    assert (directory / "checkpoint.keras").exists()
    return directory


def test_a_run_without_epochs_is_replaced(without_epochs, finished, capsys):
    assert runs.train(without_epochs, "--seed", "1", "--epochs", "1") == 0
    assert runs.train(without_epochs, "--resume", "--epochs", "2") == 0
    assert "Resuming after epoch 1" in capsys.readouterr().out


def test_a_run_without_epochs_resumes_from_the_beginning(without_epochs, finished, capsys):
    assert runs.train(without_epochs, "--resume") == 0
    assert capsys.readouterr().out.startswith("Training: ")
    runs.assert_same_run(without_epochs, finished)


def test_a_run_with_epochs_is_replaced_by_force(stopped, capsys):
    (stopped / "notes.txt").write_text("mine")
    assert runs.train(stopped, "--force", "--epochs", "1", "--seed", "1") == 0
    names = {path.name for path in stopped.iterdir()}
    assert names >= {"notes.txt", "model.keras"}
    assert len((stopped / "history.csv").read_text().splitlines()) == 2
    assert runs.train(stopped, "--resume", "--epochs", "2") == 0
    assert "Resuming after epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--optimizer", "sdg"], ["--backend", "other"]])
def test_what_is_refused_replaces_nothing(options, stopped, capsys):
    before = runs.contents(stopped)
    current = keras.config.backend()
    other = "torch" if current == "jax" else "jax"
    options = [other if option == "other" else option for option in options]
    assert runs.train(stopped, "--force", *options) in (1, 2)
    runs.assert_one_error(capsys)
    assert runs.contents(stopped) == before


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_run_that_fails_in_its_first_epoch_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(self, logs=None):
        raise error("failed")

    monkeypatch.setattr(UpdateHistory, "on_train_begin", fail)
    place = tmp_path / "runs" / "digits"
    if error is MemoryError:
        assert runs.train(place) == 1
    else:
        with pytest.raises(error):
            runs.train(place)
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_later_leaves_its_checkpoint(tmp_path, monkeypatch, finished):
    def fail(self, epoch, logs=None):
        if epoch == 1:
            raise MemoryError("failed")

    with monkeypatch.context() as patch:
        patch.setattr(UpdateHistory, "on_epoch_begin", fail)
        assert runs.train(tmp_path, "--epochs", "3") == 1
    assert runs.train(tmp_path, "--resume") == 0
    runs.assert_same_run(tmp_path, finished)


def test_ctrl_c_before_the_run_leaves_no_directory(tmp_path, capsys, monkeypatch):
    def interrupt(backend):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "import_keras", interrupt)
    assert runs.train(tmp_path / "run") == 130
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "Stopped.\n"
