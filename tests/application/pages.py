"""Pages of `tensorflow-ranger report`: what they say, and what a browser makes of them."""

import csv
import dataclasses
import html
import html.parser
import json
import os
import re
import shutil
import subprocess
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from tensorflow_ranger_cli.runs.checkpoint import MEASUREMENTS, RESULT, STATE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Tells where the panels and the notes of each chart are: an element that takes the mouse covers
# each panel that plotly has drawn.
WHERE = """<script>addEventListener("load", () => setTimeout(() => {
  const box = (element) => {
    const {left, top, right, bottom} = element.getBoundingClientRect();
    return [left, top, right, bottom];
  };
  const charts = [...document.querySelectorAll(".js-plotly-plot")].map((chart) => ({
    panels: Object.fromEntries([...chart.querySelectorAll(".nsewdrag")].map((panel) =>
      [panel.dataset.subplot, box(panel)])),
    axes: Object.keys(chart.layout).filter((key) => /^xaxis/.test(key)).map((key) =>
      key.replace("axis", "") + chart.layout[key].anchor),
    notes: [...chart.querySelectorAll(".annotation")].map((note) => {
      const {xref, yref} = chart.layout.annotations[note.dataset.index];
      return [(xref + yref).replaceAll(" domain", ""), box(note)];
    }),
  }));
  const where = document.createElement("pre");
  where.id = "where";
  where.textContent = JSON.stringify(charts);
  document.body.append(where);
}, 500))</script></body>"""


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
    """Return the table of a page, what it says of one run, as a dict."""
    return {row[0]: row[column] for row in Summary(path).rows}


def history(directory):
    """Return the rows of a run's history.csv."""
    with (directory / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewrite(directory, change):
    """Put `change` of the members that are ours into the place of a run's checkpoint."""
    path = directory / "checkpoint.keras"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    ours = {name: json.loads(members.pop(name)) for name in (STATE, MEASUREMENTS, RESULT)}
    change(ours)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, content in ours.items():
            archive.writestr(name, json.dumps(content))


def as_before(ours):
    """Make a run one of before measurements and results were recorded."""
    ours[MEASUREMENTS] = ours[RESULT] = None
    del ours[STATE]["settings"]["noise_scale"]


def begun(ours):
    """Make a run one without an epoch."""
    ours[STATE]["record"] = {"epochs": [], "micro_batches": []}
    ours[MEASUREMENTS] = ours[RESULT] = None


def diverged(ours):
    """Make a run one without a finite loss and noise scale."""
    for row in ours[STATE]["record"]["micro_batches"] + ours[STATE]["record"]["epochs"]:
        row.update(loss=float("nan"), val_loss=float("inf"), noise_scale=float("nan"))
        row.update(noise_scale_low=float("nan"), noise_scale_high=float("inf"))


@dataclasses.dataclass
class Drawn:
    """What a browser makes of a page.

    Args:
        document: The page as HTML, with all that scripts added.
        console: Lines that it logs on the console.
        charts: List with a dict for each chart: "panels", the boxes of those that were drawn, by
            their axes ("x2y2"); "axes", a list of those that should be; and "notes", a list of
            pairs with the axes of a note's panel and the note's box. A box is (left, top, right,
            bottom) in pixels.
        picture: Array with the brightness of each pixel, from 0 to 1.
    """

    document: str
    console: list[str]
    charts: list[dict[str, Any]]
    picture: np.ndarray


def drawn(page, folder, width=1280):
    """Return what Chromium makes of a page.

    Args:
        page: `pathlib.Path` of the page.
        folder: `pathlib.Path` for the browser's files.
        width: Of the window, in pixels. Chromium makes none narrower than 500.
    """
    assert CHROMIUM is not None
    folder.mkdir()
    copy, picture = folder / "page.html", folder / "picture.png"
    copy.write_text(page.read_text("utf-8").replace("</body>", WHERE), "utf-8")
    result = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--force-device-scale-factor=1",
            "--hide-scrollbars",
            "--virtual-time-budget=10000",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},4000",
            f"--screenshot={picture}",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "HOME": str(folder)},
    )
    where = re.search(r'<pre id="where">(.*?)</pre>', result.stdout)
    return Drawn(
        result.stdout,
        [line for line in result.stderr.splitlines() if "CONSOLE" in line],
        json.loads(html.unescape(where[1])) if where else [],
        np.asarray(Image.open(picture).convert("RGB")).mean(axis=-1) / 255,
    )


def assert_drawn(page):
    """Assert that a page logs nothing and has all panels.

    Args:
        page: `Drawn`.
    """
    assert page.console == []
    assert len(page.charts) == 3
    for chart in page.charts:
        assert sorted(chart["panels"]) == sorted(chart["axes"])


def assert_notes_inside(page):
    """Assert that each note of a page lies in its own panel."""
    for chart in page.charts:
        for panel, (left, top, right, bottom) in chart["notes"]:
            outer = chart["panels"][panel]
            assert outer[0] <= left < right <= outer[2], (panel, left, right, outer)
            assert outer[1] <= top < bottom <= outer[3], (panel, top, bottom, outer)


def assert_seen(page):
    """Assert that the picture of a page shows the axes of each panel, and words in each note."""
    for chart in page.charts:
        for box in chart["panels"].values():
            left, top, right, bottom = map(round, box)
            assert_line(page.picture[top:bottom, left - 3 : left + 3])
            assert_line(page.picture[bottom - 3 : bottom + 3, left:right].T)
        for _, box in chart["notes"]:
            left, top, right, bottom = map(round, box)
            assert page.picture[top:bottom, left:right].min() < 0.6


def assert_line(pixels):
    """Assert that a strip of a picture, a few pixels wide, holds a line from end to end."""
    assert (pixels < 0.9).mean(axis=0).max() > 0.95
