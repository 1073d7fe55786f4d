"""Ctrl-C at any time: one line, exit code 130."""

import contextlib
import signal

import pytest

from tensorflow_ranger_cli import interrupts
from tensorflow_ranger_cli.runs.update_history import UpdateHistory
from tests.application import runs
from tests.marks import first

pytestmark = first

# What is imported catches the error, as frameworks do.
PRESSED_WHILE_IMPORTING = """
import contextlib, signal
class Finder:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            with contextlib.suppress({caught}):
                signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(autouse=True)
def heard():
    """Hear the signal, which jobs in the background ignore, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_and_catch(*_):
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("name", "caught"), [("typer", ""), ("keras", "KeyboardInterrupt")])
def test_while_packages_are_imported(name, caught, tmp_path):
    pressed = PRESSED_WHILE_IMPORTING.format(name=name, caught=caught)
    stopped = runs.process("train", "--output", tmp_path / "runs" / "run", before=pressed)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "Stopped.\n")
    assert not list(tmp_path.iterdir())


def test_what_something_catches_while_training_stops_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(UpdateHistory, "on_epoch_begin", press_and_catch)
    assert runs.train(tmp_path) == 130
    captured = capsys.readouterr()
    assert captured.err.startswith("Stopped. Resume with: tensorflow-ranger train --resume")
    assert len(captured.err.splitlines()) == len(captured.out.splitlines()) == 1
    assert (tmp_path / "checkpoint.keras").exists()


def test_python_handles_it_again_afterwards():
    with interrupts.remembered() as raise_again:
        raise_again()
        press_and_catch()
        with pytest.raises(KeyboardInterrupt):
            raise_again()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_job_in_the_background_ignores_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.remembered() as raise_again:
            signal.raise_signal(signal.SIGINT)
            raise_again()
    finally:
        signal.signal(signal.SIGINT, before)
