"""``tensorflow-ranger report``: one page, whole by itself."""

import csv
import html.parser
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from unittest import mock

import keras
import numpy as np
import pytest

from tensorflow_ranger.cli import recorded, train
from tensorflow_ranger.cli.main import main
from tensorflow_ranger.cli.run_directory import MEASUREMENTS, NOISE, STATE
from tensorflow_ranger.cli.settings import Settings
from tests.unit.cli import runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser to open the page in: apt-get install chromium"
)
HOSTILE = "<img src=x onerror=alert(1)>&\"'"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Return the directory of a run with a measured noise scale. Only read it."""
    directory = tmp_path_factory.mktemp("noisy") / "noisy"
    options = (*runs.MICROBATCH, "--epochs", "2", "--noise-scale")
    assert runs.train(directory, *options) == 0
    return directory


@pytest.fixture(scope="module")
def compared(tmp_path_factory, finished, noisy):
    """Return a page on two runs."""
    path = tmp_path_factory.mktemp("compared") / "page.html"
    assert main(["report", str(finished), str(noisy), "--output", str(path)]) == 0
    return path


class Summary(html.parser.HTMLParser):
    """Collects the cells of the first table of a page."""

    def __init__(self, path):
        super().__init__()
        self.rows, self._cell = [], None
        self.feed(path.read_text(encoding="utf-8").partition("</table>")[0])

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self._cell = self.rows[-1]

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell[-1] += data


def facts(path, column=1):
    return {row[0]: row[column] for row in Summary(path).rows}


def history(directory):
    with (directory / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewrite(directory, change):
    """Put `change` of the members that are ours into the place of a run's checkpoint."""
    path = directory / "checkpoint.keras"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    ours = {name: json.loads(members.pop(name)) for name in (STATE, MEASUREMENTS)}
    change(ours)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, content in ours.items():
            archive.writestr(name, json.dumps(content))


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
    told = "not told by jax" if backend == "jax" else r"[\d.]+ [MG]B"
    assert re.fullmatch(told, shown["peak memory"])
    assert shown["noise scale"] == "not recorded"
    assert shown["skipped micro-batches"] == "0"
    last = history(stopped)[-1]
    # 21 micro-batches: the rest of the last window made an update after the last epoch.
    assert shown["held-out loss"] == f"{float(last['val_loss']):.4g}, at update 5"
    assert shown["held-out accuracy"] == f"{float(last['val_accuracy']):.4g}, at update 5"
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
    assert Summary(page).rows[0] == ["", "run", "noisy"]
    shown = facts(page, 2)
    assert shown["micro-batch"] == "32. The size was given."
    assert shown["skipped micro-batches"] == "not counted without RangerOptimizer"
    text = page.read_text(encoding="utf-8")
    assert recorded.read(noisy).command in text
    assert "Your effective batch of" in text or "The noise scale is not known" in text


def test_the_page_needs_no_network(compared):
    text = compared.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    assert text.count("* plotly.js v") == 1
    assert not re.search(r"<(script|img|iframe|link)[^>]+(src|href)=[\"'](?!data:)", text)
    assert "@import" not in text
    assert "\x1b" not in text
    # The library names places that it could fetch maps from; what we write names none.
    begin = text.index("* plotly.js v")
    ours = text[:begin] + text[text.index("</script>", begin) :]
    assert not re.search(r"(https?:|src=[\"'])//", ours.replace("data:,", ""))
    assert len(ours) < 200_000


def test_the_numbers_are_those_of_the_run(finished):
    run = recorded.read(finished)
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
    run = recorded.read(finished)
    assert [row["epoch"] for row in run.measured["epochs"]] == [1, 2, 3]
    assert run.samples == run.measured["samples"] == 224
    assert run.seconds is not None
    assert 0 < run.seconds < 1
    assert (run.memory is None) == (keras.config.backend() == "jax")
    if run.memory is not None:
        assert 10**7 < run.memory < 10**12
    assert run.skipped == 0
    assert [candidate["size"] for candidate in recorded.read(noisy).measured["candidates"]] == [32]


@pytest.mark.parametrize("options", [runs.MICROBATCH, ("--accumulation-steps", "2")])
def test_the_noise_scale_is_recorded_and_goes_on_after_a_stop(options, tmp_path, capsys):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert runs.train(straight, *options, "--noise-scale", "--epochs", "2") == 0
    advice = recorded.read(straight).measured["noise_advice"]
    assert advice in capsys.readouterr().out.splitlines()
    assert runs.train(resumed, *options, "--noise-scale", "--epochs", "1") == 0
    assert runs.train(resumed, "--resume", "--epochs", "2") == 0
    assert json.loads((resumed / "settings.json").read_text())["noise_scale"] is True
    rows = history(straight)
    assert list(rows[0])[-3:] == list(NOISE)
    assert 0 < float(rows[-1]["noise_scale_low"]) <= float(rows[-1]["noise_scale"])
    runs.assert_same_run(resumed, straight)
    assert recorded.read(resumed).measured["noise_advice"] == advice


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_of_before_there_were_measurements_is_shown(damaged, stopped, capsys):
    def as_before(ours):
        del ours[MEASUREMENTS], ours[STATE]["settings"]["noise_scale"]

    rewrite(stopped, as_before)
    if damaged:
        (stopped / "checkpoint.keras").write_bytes(b"half")
    assert main(["report", str(stopped)]) == 0
    shown = facts(stopped / "report.html")
    if damaged:
        assert "checkpoint.keras" in capsys.readouterr().out
        assert shown["epochs"] == "2 of 3"
        assert shown["note"] == "The last checkpoint is damaged: this is the one before it."
        return
    for name in ("trained by", "time per sample", "peak memory", "skipped micro-batches"):
        assert shown[name] == "not recorded"
    assert shown["samples"] == "672 images seen, if each batch was full"
    assert "stopped: not recorded" in (stopped / "report.html").read_text(encoding="utf-8")


def test_a_run_without_an_epoch_is_shown(stopped, tmp_path):
    def begun(ours):
        ours[STATE]["record"] = {"epochs": [], "micro_batches": []}
        ours[MEASUREMENTS] = None

    rewrite(stopped, begun)
    assert main(["report", str(stopped)]) == 0
    shown = facts(stopped / "report.html")
    assert (shown["epochs"], shown["updates"]) == ("0 of 3", "0")
    assert shown["held-out loss"] == "none yet"
    assert "no epoch yet" in (stopped / "report.html").read_text(encoding="utf-8")
    assert_opens(stopped / "report.html", tmp_path)


def test_a_run_that_diverged_is_shown(stopped, tmp_path):
    def diverged(ours):
        for row in ours[STATE]["record"]["micro_batches"] + ours[STATE]["record"]["epochs"]:
            row.update(loss=float("nan"), val_loss=float("inf"), noise_scale=float("nan"))
            row.update(noise_scale_low=float("nan"), noise_scale_high=float("inf"))

    rewrite(stopped, diverged)
    assert main(["report", str(stopped)]) == 0
    assert facts(stopped / "report.html")["noise scale"] == "not known yet"
    assert "no finite noise scale" in (stopped / "report.html").read_text(encoding="utf-8")
    assert_opens(stopped / "report.html", tmp_path)


def test_what_users_write_stays_text(stopped, tmp_path):
    def hostile(ours):
        ours[STATE]["microbatch_plan"] = {"chosen": 8, "reason": f"</script>{HOSTILE}"}
        ours[STATE]["settings"].update(optimizer=HOSTILE, backend=HOSTILE, learning_rate=0.5)
        ours[MEASUREMENTS].update(devices=HOSTILE, noise_advice=HOSTILE)

    rewrite(stopped, hostile)
    directory = stopped.rename(tmp_path / HOSTILE)
    assert main(["report", str(directory)]) == 0
    page = directory / "report.html"
    assert "<img" not in page.read_text(encoding="utf-8").replace("* plotly.js", "", 1)[:4000]
    shown = facts(page)
    assert shown["optimizer"] == shown["backend"] == shown["trained by"] == HOSTILE
    text = page.read_text(encoding="utf-8")
    begin = text.index("* plotly.js v")
    ours = text[:begin] + text[text.index("</script>", begin) :]
    assert "<img" not in ours
    assert Summary(page).rows[0][1] == HOSTILE
    assert_opens(page, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--optimizer", "adamw", "--accumulation-steps", "3", "--seed", "7"),
        ("--learning-rate", "1e-05", "--lookahead", "--centralize", "--noise-scale"),
        ("brown",),
        ("brown", "--accumulation-steps", "2"),
        ("reviews", "--optimizer", "lion"),
        ("--batch-size", "64", "--microbatch", "auto", "--memory-limit", "4GB"),
        ("--batch-size", "64", "--microbatch", "8", "--noise-scale"),
    ],
    ids=" ".join,
)
def test_the_command_repeats_the_run(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parsed("train", *options, "--output", "first")
    words = shlex.split(recorded.command(settings, "a place/again"))
    assert words.pop(0) == "tensorflow-ranger"
    assert words[-2:] == ["--output", "a place/again"]
    assert parsed(*words) == settings
    assert (tmp_path / "a place" / "again").is_dir()


def parsed(*arguments):
    """Return the `Settings` that a command line means."""
    with (
        mock.patch.object(train, "_require_packages"),
        mock.patch.object(train, "Run") as run,
    ):
        assert runs.run(*arguments) == 0
    (settings,) = [given for given in run.call_args.args if isinstance(given, Settings)]
    return settings


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


def test_long_curves_are_thinned():
    values = np.arange(10_001.0)
    assert recorded.thinned(values[:2000]) == list(range(2000))
    last, means = recorded.thinned(values), recorded.thinned(values, np.mean)
    assert len(last) == len(means) <= recorded.MOST_POINTS
    assert last[:2] == [5, 11]
    assert last[-1] == 10_000
    assert means[0] == 2.5


def opened(page, folder):
    """Return what Chromium makes of a page, and what it logs on the console."""
    assert CHROMIUM is not None
    result = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            f"--user-data-dir={folder}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "HOME": str(folder)},
    )
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def assert_opens(page, folder):
    """Assert that a page opens without an error, where there is a browser."""
    if CHROMIUM is not None:
        document, console = opened(page, folder / "profile")
        assert console == []
        assert document.count('class="main-svg"') >= 3


@needs_chromium
def test_a_browser_draws_the_charts(compared, tmp_path):
    document, console = opened(compared, tmp_path)
    assert console == []
    for name in ("curves", "batch", "time"):
        chart = document[document.index(f'id="chart-{name}"') :]
        assert 'class="main-svg"' in chart.partition("</svg>")[0]
    for words in ("updates", "training samples seen", "loss", "accuracy", "epoch"):
        assert f">{words}</text>" in document
    assert "run: training, mean of an update</text>" in document
    assert "noisy: held out, at the end of an epoch</text>" in document


@needs_chromium
@pytest.mark.parametrize(
    "script", ["nothing()", "console.error('no')", "fetch('https://example.org/')"]
)
def test_an_error_in_the_page_would_be_seen(script, compared, tmp_path):
    text = compared.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    _, console = opened(broken, tmp_path / "profile")
    assert console
