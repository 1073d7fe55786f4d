"""The page of a report, and what a browser draws of it."""

import re

import numpy as np
import plotly.offline
import pytest

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.report import recorded_run
from tensorflow_ranger_cli.report.page import page
from tensorflow_ranger_cli.runs.checkpoint import MEASUREMENTS, STATE
from tests.application import pages
from tests.application.pages import CHROMIUM, Table, facts, rewrite
from tests.marks import thorough_but

pytestmark = pytest.mark.once

# What can be seen without a browser is tested without one, by `test_report_charts`.
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser to open the page in: apt-get install chromium"
)
HOSTILE = "<img src=x onerror=alert(1)>&\"'"


def ours(page):
    """Return the text of a page without the plotting library, which names places to fetch from."""
    text = page.read_text(encoding="utf-8")
    assert text.count("* plotly.js v") == 1
    begin = text.index("* plotly.js v")
    return text[:begin] + text[text.index("</script>", begin) :]


def test_the_page_needs_no_network(compared):
    text = ours(compared)
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    assert not re.search(r"\b(https?|wss?|ftp):|(src|href)=(?!\"data:,\")|url\(|@import", text)
    assert "\x1b" not in text


def test_pages_of_long_runs_stay_small(stopped):
    def lengthen(members):
        members[MEASUREMENTS]["samples"] *= 2000
        record = members[STATE]["record"]
        record["micro_batches"] *= 2000
        for number, row in enumerate(rows := list(map(dict, record["micro_batches"]))):
            row.update(updates=number, loss=1 / (1 + number))
        record["micro_batches"] = rows

    rewrite(stopped, lengthen)
    runs = [recorded_run.read(stopped) for _ in range(5)]
    assert len(runs[0].updates) > 40_000
    library = len(plotly.offline.get_plotlyjs())
    assert library < len(page(runs)) < library + 1_000_000


def test_a_reader_compares_runs_at_a_glance(compared, finished, noisy):
    header, *rows = Table(compared, "glance").rows
    assert header[1:] == [
        "held-out accuracy",
        "updates",
        "samples per update",
        "time per sample",
        "training time",
        "peak memory",
    ]
    assert [row[0] for row in rows] == ["run", "noisy"]
    assert [row[2:4] for row in rows] == [["6", "128"], ["4", "112"]]
    text = ours(compared)
    read = map(recorded_run.read, (finished, noisy))
    accuracies = [accuracy for run in read for accuracy in run.figures.values()]
    best = re.search(r'class="number best">([\d.]+)%<', text)
    assert best is not None
    assert best[1] == f"{100 * max(accuracies):.1f}"
    shares = [("100", "6"), ("100", "128"), ("67", "4"), ("88", "112")]
    assert re.findall(r'--share: (\d+)%">(\d+)<', text) == shares
    assert 'class="differs"><th>updates' in text
    assert 'class="same"><th>task' in text


def test_a_run_without_an_epoch_is_shown(stopped):
    rewrite(stopped, pages.begun)
    assert main(["report", str(stopped)]) == 0
    shown = facts(stopped / "report.html")
    assert (shown["epochs"], shown["updates"]) == ("0 of 3", "0")
    assert shown["result"] == shown["held-out loss, last epoch"] == "none yet"
    assert "no epoch yet" in (stopped / "report.html").read_text(encoding="utf-8")


def test_a_run_that_diverged_is_shown(stopped):
    rewrite(stopped, pages.diverged)
    assert main(["report", str(stopped)]) == 0
    assert facts(stopped / "report.html")["noise scale"] == "not known yet"
    text = ours(stopped / "report.html")
    assert text.count("no finite number") == 2
    assert "no finite noise scale" in text


def hostile(ours):
    ours[STATE]["microbatch_plan"] = {"chosen": 8, "reason": f"</script>{HOSTILE}"}
    ours[STATE]["settings"].update(optimizer=HOSTILE, backend=HOSTILE, learning_rate=0.5)
    ours[MEASUREMENTS].update(devices=HOSTILE, noise_advice=HOSTILE)


def test_what_users_write_stays_text(stopped, tmp_path):
    rewrite(stopped, hostile)
    directory = stopped.rename(tmp_path / HOSTILE)
    assert main(["report", str(directory)]) == 0
    page = directory / "report.html"
    shown = facts(page)
    assert shown["optimizer"] == shown["backend"] == shown["trained by"] == HOSTILE
    assert "<img" not in ours(page)
    assert Table(page, "summary").rows[0][1] == HOSTILE


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_the_charts(width, dark, compared, tmp_path):
    page = pages.drawn(compared, tmp_path / "browser", width, dark)
    pages.assert_drawn(page, width)
    pages.assert_seen(page)
    assert (page.picture[0, 0] < 0.2) == dark
    assert len(page.charts) == 8
    columns = {chart["box"][0] for chart in page.charts}
    assert len(columns) == (2 if width == 1280 else 1)
    assert {"updates", "training samples seen", "loss", "accuracy", "epoch"} <= set(page.words)


@needs_chromium
@pytest.mark.parametrize(
    "change", thorough_but([pages.diverged], [pages.as_before, pages.begun, pages.diverged])
)
def test_a_browser_draws_what_there_is(change, stopped, tmp_path):
    rewrite(stopped, change)
    assert main(["report", str(stopped)]) == 0
    page = pages.drawn(stopped / "report.html", tmp_path / "browser")
    pages.assert_drawn(page)
    pages.assert_seen(page)
    assert len(page.charts) < 8


@needs_chromium
def test_a_box_hides_a_run(compared, tmp_path):
    text = compared.read_text(encoding="utf-8")
    click = "document.querySelectorAll('#runs input')[1].click()"
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"<script>{click}</script></body>"), "utf-8")
    before = pages.drawn(compared, tmp_path / "before")
    after = pages.drawn(page, tmp_path / "after")
    pages.assert_drawn(after)
    curves = [picture_of(shown, shown.charts[0]) for shown in (before, after)]
    assert curves[0].shape == curves[1].shape
    assert np.abs(curves[0] - curves[1]).max() > 0.2


def picture_of(page, chart):
    left, top, right, bottom = map(round, chart["box"])
    return page.picture[top:bottom, left:right]


@needs_chromium
def test_a_browser_runs_nothing_that_users_wrote(stopped, tmp_path):
    rewrite(stopped, hostile)
    directory = stopped.rename(tmp_path / HOSTILE)
    assert main(["report", str(directory)]) == 0
    pages.assert_drawn(pages.drawn(directory / "report.html", tmp_path / "browser"))


@needs_chromium
@pytest.mark.parametrize(
    "script",
    thorough_but(
        ["nothing()"], ["nothing()", "console.error('no')", "fetch('https://example.org/')"]
    ),
)
def test_an_error_in_the_page_would_be_seen(script, compared, tmp_path):
    text = compared.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    assert pages.drawn(broken, tmp_path / "browser").console
