"""``tensorflow-ranger report``: the command."""

import importlib.util
import re

import keras
import pytest

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.report import recorded_run
from tensorflow_ranger_cli.runs.checkpoint import MEASUREMENTS, RESULT, STATE
from tests.application import pages, runs
from tests.application.pages import facts, history, rewrite
from tests.marks import first

pytestmark = first


def test_a_run_gets_its_page_where_it_lies(stopped, capsys):
    assert main(["report", str(stopped)]) == 0
    page = stopped / "report.html"
    assert capsys.readouterr().out == f"{page} shows stopped. Open it in a browser\n"
    shown = facts(page)
    backend = keras.config.backend()
    assert shown["task"] == "digits: Handwritten digits"
    assert shown["backend"] == backend
    assert shown["epochs"] == "3 of 3"
    assert shown["updates"] == "6"
    assert shown["samples"] == "672 images seen"
    assert shown["effective batch"] == "128 images"
    assert shown["micro-batch"] == "32. Each batch is a micro-batch, and 4 make one update."
    assert re.fullmatch(
        r"[\d,.]+ (µs|ms) \(median epoch after the first\)", shown["time per sample"]
    )
    assert re.fullmatch(r"[\d.]+ [MG]B", shown["peak memory"])
    assert shown["noise scale"] == "not recorded"
    assert shown["skipped micro-batches"] == "0"
    last = history(stopped)[-1]
    # 21 micro-batches: the rest of the last window made an update after the last epoch.
    assert shown["held-out loss, last epoch"] == f"{float(last['val_loss']):.4g}, at update 5"
    assert (
        shown["held-out accuracy, last epoch"] == f"{float(last['val_accuracy']):.4g}, at update 5"
    )
    assert main(["report", str(stopped)]) == 0  # the page may be written anew


def test_a_run_of_one_epoch_says_what_its_time_holds(tmp_path):
    assert runs.train(tmp_path / "run", "--epochs", "1") == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    shown = facts(tmp_path / "run/report.html")["time per sample"]
    assert shown.endswith(" (one epoch, with what was compiled)")


def test_several_runs_stand_side_by_side(finished, noisy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(finished), str(noisy), str(noisy)]) == 0
    page = tmp_path / "report.html"
    assert pages.Table(page, "summary").rows[0] == ["", "run", "noisy"]
    shown = facts(page, 2)
    assert shown["micro-batch"] == "32. The size was given."
    assert shown["skipped micro-batches"] == "not counted without RangerOptimizer"
    text = page.read_text(encoding="utf-8")
    assert recorded_run.read(noisy).command in text
    assert "Your effective batch of" in text or "The noise scale is not known" in text


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_of_before_there_were_measurements_is_shown(damaged, stopped, capsys):
    rewrite(stopped, pages.as_before)
    if damaged:
        (stopped / "checkpoint.keras").write_bytes(b"half")
    assert main(["report", str(stopped)]) == 0
    shown = facts(stopped / "report.html")
    if damaged:
        assert "checkpoint.keras" in capsys.readouterr().out
        assert shown["epochs"] == "2 of 3"
        assert shown["note"] == "The last checkpoint is damaged: this is the one before it."
        return
    for name in ("result", "trained by", "time per sample", "peak memory", "skipped micro-batches"):
        assert shown[name] == "not recorded"
    assert shown["samples"] == "672 images seen, if each batch was full"
    assert "</span>stopped: not recorded<" in (stopped / "report.html").read_text("utf-8")


def test_a_damaged_run_is_named(stopped, capsys):
    for name in ("checkpoint.keras", "checkpoint.previous.keras"):
        (stopped / name).write_bytes(b"half")
    assert main(["report", str(stopped)]) == 1
    runs.assert_one_error(capsys, str(stopped / "checkpoint.keras"), "Put back a whole copy")
    assert not (stopped / "report.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda ours: ours[STATE]["record"].pop("epochs"),
        lambda ours: ours[STATE]["record"]["epochs"][0].pop("val_loss"),
        lambda ours: ours[STATE]["record"]["micro_batches"].pop(),
        lambda ours: ours[MEASUREMENTS].update(epochs=[{}]),
        lambda ours: ours[MEASUREMENTS].update(candidates=[{"length": 3}]),
        lambda ours: ours[STATE].update(microbatch_plan={"chosen": 3}),
        lambda ours: ours[STATE]["record"]["epochs"][0].update(noise_scale=3.0),
        lambda ours: ours.update({MEASUREMENTS: [1]}),
        lambda ours: ours[RESULT].pop("updates"),
    ],
)
def test_a_record_that_is_none_is_named(change, stopped, capsys):
    rewrite(stopped, change)
    assert main(["report", str(stopped)]) == 1
    runs.assert_one_error(capsys, str(stopped / "checkpoint.keras"), "holds no record of a run")


def test_an_output_that_cannot_be_written_is_named(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for output in ("file/page.html", "folder"):
        assert main(["report", str(finished), "--output", str(tmp_path / output)]) == 1
        runs.assert_one_error(capsys, f"{tmp_path / output} cannot be written", "--output")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(finished), "--output", "."]) == 1
    runs.assert_one_error(capsys, ". cannot be written", "--output")
    assert main(["report", str(finished), "--output", str(tmp_path / "file")]) == 2
    runs.assert_one_error(capsys, "--output must be a new file or a page to replace", "file")
    assert runs.contents(tmp_path) == {tmp_path / "file": b"mine"}


def test_a_missing_plotly_is_named(finished, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "plotly" else find(name)
    )
    assert main(["report", str(finished)]) == 1
    runs.assert_one_error(capsys, "plotly", 'pip install "tensorflow-ranger[examples]"')
