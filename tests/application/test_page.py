"""The page of a report, and what a browser draws of it."""

import re

import pytest

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.runs.checkpoint import MEASUREMENTS, STATE
from tests.application import pages
from tests.application.pages import CHROMIUM, facts, rewrite
from tests.marks import thorough_but

pytestmark = pytest.mark.once

# What can be seen without a browser is tested without one, by `test_report_charts`.
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser to open the page in: apt-get install chromium"
)
HOSTILE = "<img src=x onerror=alert(1)>&\"'"


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
    assert "no finite noise scale" in (stopped / "report.html").read_text(encoding="utf-8")


def hostile(ours):
    ours[STATE]["microbatch_plan"] = {"chosen": 8, "reason": f"</script>{HOSTILE}"}
    ours[STATE]["settings"].update(optimizer=HOSTILE, backend=HOSTILE, learning_rate=0.5)
    ours[MEASUREMENTS].update(devices=HOSTILE, noise_advice=HOSTILE)


def test_what_users_write_stays_text(stopped, tmp_path):
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
    assert pages.Summary(page).rows[0][1] == HOSTILE


@needs_chromium
def test_a_browser_draws_the_charts(compared, tmp_path):
    page = pages.drawn(compared, tmp_path / "browser")
    pages.assert_drawn(page)
    for name in ("curves", "batch", "time"):
        chart = page.document[page.document.index(f'id="chart-{name}"') :]
        assert 'class="main-svg"' in chart.partition("</svg>")[0]
    for words in ("updates", "training samples seen", "loss", "accuracy", "epoch"):
        assert f">{words}</text>" in page.document
    assert "run: training, mean of an update</text>" in page.document
    assert "noisy: held out, at the end of an epoch</text>" in page.document


@needs_chromium
@pytest.mark.parametrize(
    "change", thorough_but([pages.diverged], [pages.as_before, pages.begun, pages.diverged])
)
def test_a_browser_draws_panels_without_a_curve(change, stopped, tmp_path):
    rewrite(stopped, change)
    assert main(["report", str(stopped)]) == 0
    page = pages.drawn(stopped / "report.html", tmp_path / "browser")
    pages.assert_drawn(page)
    pages.assert_notes_inside(page)
    pages.assert_seen(page)


@needs_chromium
def test_a_browser_runs_nothing_that_users_wrote(stopped, tmp_path):
    rewrite(stopped, hostile)
    directory = stopped.rename(tmp_path / HOSTILE)
    assert main(["report", str(directory)]) == 0
    pages.assert_drawn(pages.drawn(directory / "report.html", tmp_path / "browser"))


@needs_chromium
@pytest.mark.parametrize("width", thorough_but([1280], [1280, 500]))
def test_the_notes_of_a_run_without_options_lie_in_their_panels(width, finished, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(finished), "--output", str(page)]) == 0
    drawn = pages.drawn(page, tmp_path / "browser", width)
    pages.assert_drawn(drawn)
    assert [panel for panel, _ in drawn.charts[1]["notes"]] == ["x2y2"]
    pages.assert_notes_inside(drawn)
    left, _, right, _ = drawn.charts[1]["panels"]["x2y2"]
    assert right - left > 200  # a narrow window scrolls
    if width == 1280:  # the whole chart is in the picture
        pages.assert_seen(drawn)


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
