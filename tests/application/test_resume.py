"""``tensorflow-ranger train --resume``: a stop leaves no trace."""

import os
import signal
import subprocess
import sys
import zipfile

import keras
import pytest

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.runs.run_directory import RunDirectory
from tensorflow_ranger_cli.runs.update_history import UpdateHistory
from tests.application import runs
from tests.marks import first

# In the second epoch, in the middle of a window.
LAST_MICRO_BATCH = runs.MICRO_BATCHES + 2

KILL = f"""
import os, signal
from tests.application import runs
from tensorflow_ranger_cli.runs.update_history import UpdateHistory

def record_and_die(self, batch, logs=None, record=UpdateHistory.on_train_batch_end):
    record(self, batch, logs)
    if len(self.micro_batches) == {LAST_MICRO_BATCH}:
        os.kill(os.getpid(), signal.SIGKILL)

UpdateHistory.on_train_batch_end = record_and_die
runs.use_few_digits()
"""


@first
def test_a_killed_run_resumes_as_if_it_had_not_been(finished, tmp_path, capsys):
    # Two processes that give the same bits show that a seed makes the same run, too.
    killed = runs.process("train", "--epochs", 3, "--output", tmp_path, before=KILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "model.keras").exists()
    (tmp_path / ".checkpoint.keras").write_bytes(b"half a checkpoint")
    assert runs.train(tmp_path, "--resume") == 0
    assert "Resuming after epoch 1" in capsys.readouterr().out
    runs.assert_same_run(tmp_path, finished)
    assert settled(tmp_path) == settled(finished)


def settled(directory):
    """Return the files that must not differ, and the state kept in the checkpoint."""
    with zipfile.ZipFile(directory / "checkpoint.keras") as archive:
        state = archive.read("tensorflow_ranger.json")
    return state, (directory / "settings.json").read_bytes(), names(directory)


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_more_epochs_train_on_from_before_the_window_was_closed(finished, tmp_path):
    assert runs.train(tmp_path, "--epochs", "1") == 0
    assert runs.train(tmp_path, "--resume", "--epochs", "3") == 0
    runs.assert_same_run(tmp_path, finished)
    assert settled(tmp_path) == settled(finished)


@first
def test_a_finished_run_resumes_to_itself_as_a_user_would_do_it(finished, stopped):
    (stopped / "model.keras").unlink()  # as if killed after the last epoch
    other = "torch" if keras.config.backend() == "jax" else "jax"
    result = subprocess.run(
        [sys.executable, "-m", "tensorflow_ranger_cli", "train", "--resume", "--output", stopped],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": other},  # the run's own backend comes before it
    )
    assert result.returncode == 0
    assert not result.stderr
    assert f"Resuming after epoch 3: sgd on {keras.config.backend()}" in result.stdout
    runs.assert_same_run(stopped, finished)


@first
def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(self, logs=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(UpdateHistory, "on_train_begin", interrupt)
    assert runs.train(tmp_path / "a run") == 130
    assert capsys.readouterr().err == (
        f"Stopped. Resume with: tensorflow-ranger train --resume --output '{tmp_path / 'a run'}'\n"
    )


@first
@pytest.mark.parametrize(
    ("option", "value", "held"),
    [
        ("--optimizer", "adam", "sgd"),
        ("--accumulation-steps", "2", "4"),
        ("--batch-size", "16", "32"),
        ("--learning-rate", "0.1", "0.03"),
        ("--backend", None, None),
        ("--seed", "1", "0"),
        ("--microbatch", "16", "none"),
        ("--lookahead", None, "none"),
        ("--centralize", None, "none"),
        ("--noise-scale", None, "none"),
    ],
)
def test_an_option_that_contradicts_the_run_is_named(option, value, held, stopped, capsys):
    if option == "--backend":
        held = keras.config.backend()
        value = "torch" if held == "jax" else "jax"
    before = runs.contents(stopped)
    assert runs.train(stopped, "--resume", option, *([value] if value else [])) == 2
    got = value or option
    runs.assert_one_error(capsys, f"{option} contradicts", f"got {got}, the run has {held}.")
    assert runs.contents(stopped) == before


@first
def test_fewer_epochs_than_trained_are_refused(stopped, capsys):
    before = runs.contents(stopped)
    assert runs.train(stopped, "--resume", "--epochs", "2") == 2
    runs.assert_one_error(capsys, "--epochs must be at least 3", "got 2")
    assert runs.contents(stopped) == before


@first
@pytest.mark.parametrize("directory", ["absent", "."])
def test_nothing_to_resume_is_said(directory, tmp_path, capsys):
    assert runs.train(tmp_path / directory, "--resume") == 2
    runs.assert_one_error(capsys, "nothing to resume", "leaving --resume out")
    assert not list(tmp_path.iterdir())


def cut(content):
    return content[: len(content) // 2]


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@first
@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda content: b"", lambda content: b"text"])
def test_a_damaged_checkpoint_is_named(damage, stopped, capsys, monkeypatch):
    monkeypatch.setattr(keras.saving, "load_model", lambda path: pytest.fail("Keras read it"))
    checkpoint = stopped / "checkpoint.keras"
    for path in (checkpoint, stopped / "checkpoint.previous.keras"):
        path.write_bytes(damage(path.read_bytes()))
    before = runs.contents(stopped)
    assert runs.train(stopped, "--resume") == 1
    runs.assert_one_error(capsys, str(checkpoint), "no checkpoint that can be resumed")
    assert runs.contents(stopped) == before


@first
def test_a_model_of_other_making_is_no_checkpoint(stopped, capsys):
    (stopped / "checkpoint.keras").write_bytes((stopped / "model.keras").read_bytes())
    (stopped / "checkpoint.previous.keras").unlink()
    assert runs.train(stopped, "--resume") == 1
    runs.assert_one_error(capsys, "no checkpoint that can be resumed", "tensorflow_ranger.json")


@first
def test_a_checkpoint_that_keras_cannot_load_is_named(stopped, capsys):
    checkpoint = stopped / "checkpoint.keras"
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(b"Conv2D", b"Conv9D")
    with zipfile.ZipFile(checkpoint, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    before = runs.contents(stopped)
    assert runs.train(stopped, "--resume") == 1
    runs.assert_one_error(capsys, "no checkpoint that can be resumed")
    assert runs.contents(stopped) == before


@first
def test_a_run_killed_between_its_checkpoints_goes_on_from_the_previous(stopped, finished, capsys):
    checkpoint = stopped / "checkpoint.keras"
    checkpoint.unlink()
    assert runs.train(stopped, "--resume") == 0
    note, resuming, *_ = capsys.readouterr().out.splitlines()
    assert note == f"{checkpoint} does not exist. Continuing from checkpoint.previous.keras"
    assert resuming.startswith("Resuming after epoch 2: ")
    runs.assert_same_run(stopped, finished)


@first
def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(stopped, monkeypatch):
    checkpoint, previous = (stopped / f"checkpoint{x}.keras" for x in ("", ".previous"))
    checkpoint.write_bytes(b"text")
    whole = previous.read_bytes()
    # The run is killed once it has written one more.
    monkeypatch.setattr(RunDirectory, "write_settings", lambda *_: exit(9))
    with pytest.raises(SystemExit):
        runs.train(stopped, "--resume")
    assert previous.read_bytes() == whole
    assert zipfile.is_zipfile(checkpoint)


@first
def test_a_checkpoint_that_cannot_be_written_keeps_the_last(stopped, capsys, monkeypatch):
    def full(self, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    checkpoint = (stopped / "checkpoint.keras").read_bytes()
    monkeypatch.setattr(keras.Model, "save", full)
    assert runs.train(stopped, "--resume", "--epochs", "4") == 1
    runs.assert_one_error(capsys, "cannot be written: No space left on device")
    assert (stopped / "checkpoint.keras").read_bytes() == checkpoint


@first
def test_the_run_that_is_resumed_need_not_be_in_the_default_directory(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume"]) == 2
    runs.assert_one_error(capsys, "runs/digits/checkpoint.keras does not exist")
