"""What ``tensorflow-ranger train`` shows while it trains."""

import io
import re
import sys

import pytest

from tensorflow_ranger_cli.runs.progress import shows_bars
from tests.application import runs
from tests.marks import first

pytestmark = first

# The import that keeps the frameworks' messages back comes first.
FEW = """
from tensorflow_ranger_cli.keras_backend import import_keras
import_keras()
from tests.application import runs
runs.use_few_digits()
"""


def test_redirected_output_has_one_line_for_each_epoch(tmp_path):
    done = runs.process("train", "--epochs", 2, "--output", tmp_path / "run", before=FEW)
    assert done.returncode == 0, done.stderr
    training, *epochs, difference, held_out = done.stdout.splitlines()
    assert training.startswith("Training: ")
    assert held_out.startswith("Held-out ")
    assert difference.startswith("The saved model has one more update")
    assert [line[:12] for line in epochs] == ["Epoch 1/2 - ", "Epoch 2/2 - "]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert re.search(rf" - {name}: \d\.\d{{4}}", epochs[0])
    assert not re.search("[\b\r\033]", done.stdout + done.stderr)


def test_quiet_prints_nothing(tmp_path):
    options = ("train", "--quiet", "--epochs", 1, "--output", tmp_path)
    done = runs.process(*options, before=FEW)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "model.keras").exists()


def test_quiet_keeps_errors(capfd):
    assert runs.run("train", "--quiet", "--output", "/proc/run") == 1
    assert capfd.readouterr().err.startswith("Error: /proc/run cannot be written")


@pytest.mark.parametrize(
    ("variables", "bars"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_has_bars_unless_it_is_plain(variables, bars):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    environment = {"TERM": "xterm"} | variables
    assert shows_bars(Terminal(), environment) == bars
    assert not shows_bars(io.StringIO(), environment)


def test_bars_reach_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert runs.train(tmp_path, "--epochs", "1") == 0
    assert "\b" in capsys.readouterr().out
