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
# Tells the page around it what stands where, and in which colors.
TELL = """<script>addEventListener("load", () => setTimeout(() => {
  const box = (element) => {
    const {left, top, right, bottom} = element.getBoundingClientRect();
    return [left, top, right, bottom];
  };
  const texts = [...document.querySelectorAll("p, th, td, label, figcaption, text")];
  const inkOf = (element) => getComputedStyle(element)[element.ownerSVGElement ? "fill" : "color"];
  parent.postMessage(JSON.stringify({
    charts: [...document.querySelectorAll(".js-plotly-plot")].map((chart) => ({
      box: box(chart.querySelector(".main-svg")),
      panels: [...chart.querySelectorAll(".nsewdrag")].map(box),
    })),
    words: texts.map((element) => element.textContent),
    inks: [...new Set(texts.filter((e) => !e.closest(".hoverlayer")).map(inkOf))],
    paper: getComputedStyle(document.body).backgroundColor,
    width: document.documentElement.scrollWidth,
  }), "*");
}, 500))</script></body>"""
# A window of Chromium is never narrower than 500 pixels: a frame in it is.
AROUND = """<!doctype html><html style="color-scheme: light dark"><body style="margin: 0">
<script>addEventListener("message", (message) => {{
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = message.data;
  document.body.append(told);
}})</script>
<iframe src="page.html" style="border: 0; width: {width}px; height: {height}px"></iframe>
</body></html>"""
HEIGHT = 4000


class Table(html.parser.HTMLParser):
    """Collects the cells of a table of a page.

    Args:
        path: `pathlib.Path` of the page.
        name: "glance" or "summary".
    """

    def __init__(self, path, name):
        super().__init__()
        self.rows, self._cell = [], None
        table = path.read_text(encoding="utf-8").partition(f'<table id="{name}">')[2]
        self.feed(table.partition("</table>")[0])

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
    """Return all that a page says of one run, as a dict."""
    return {row[0]: row[column] for row in Table(path, "summary").rows}


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


def without_peaks(ours):
    """Make a run one on a system that does not tell the peak of memory."""
    for row in ours[MEASUREMENTS]["epochs"]:
        row["peak_memory"] = None


def diverged(ours):
    """Make a run one without a finite loss and noise scale."""
    for row in ours[STATE]["record"]["micro_batches"] + ours[STATE]["record"]["epochs"]:
        row.update(loss=float("nan"), val_loss=float("inf"), noise_scale=float("nan"))
        row.update(noise_scale_low=float("nan"), noise_scale_high=float("inf"))


@dataclasses.dataclass
class Drawn:
    """What a browser makes of a page.

    Args:
        console: Lines that it logs on the console.
        charts: List with a dict for each chart: its "box", and the boxes of the "panels" in it. A
            box is (left, top, right, bottom) in pixels.
        words: List of what the page's elements and charts say.
        inks: Colors of their texts, as CSS.
        paper: Color of the page, as CSS.
        width: Width that the page takes, in pixels.
        picture: Array with the brightness of each pixel, from 0 to 1.
    """

    console: list[str]
    charts: list[dict[str, Any]]
    words: list[str]
    inks: list[str]
    paper: str
    width: int
    picture: np.ndarray


def drawn(page, folder, width=1280, dark=False):
    """Return what Chromium makes of a page.

    Args:
        page: `pathlib.Path` of the page.
        folder: `pathlib.Path` for the browser's files.
        width: Of what the page is shown in, in pixels.
        dark: Whether the reader prefers dark pages.
    """
    assert CHROMIUM is not None
    folder.mkdir()
    around, picture = folder / "around.html", folder / "picture.png"
    told = page.read_text("utf-8").replace("</body>", TELL)
    (folder / "page.html").write_text(told, "utf-8")
    around.write_text(AROUND.format(width=width, height=HEIGHT), "utf-8")
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
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={max(500, width)},{HEIGHT}",
            f"--screenshot={picture}",
            "--dump-dom",
            around.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "HOME": str(folder)},
    )
    found = re.search(r'<pre id="told">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found is not None, result.stderr
    return Drawn(
        console=[line for line in result.stderr.splitlines() if "CONSOLE" in line],
        picture=np.asarray(Image.open(picture).convert("L")) / 255,
        **json.loads(html.unescape(found[1])),
    )


def assert_drawn(page, width=1280):
    """Assert that a page logs nothing, and that its charts are drawn beside each other within it.

    Args:
        page: `Drawn`.
        width: Of what it is shown in.
    """
    assert page.console == []
    assert page.width <= width
    for number, chart in enumerate(page.charts):
        assert len(chart["panels"]) == 1
        left, top, right, bottom = chart["box"]
        assert 0 <= left < right <= width
        assert right - left > 300
        assert 0 < top < bottom
        for other in page.charts[:number]:
            assert_apart(chart["box"], other["box"])


def assert_apart(box, other):
    """Assert that two boxes do not overlap."""
    assert any(
        one[2 + axis] <= two[axis] for axis in (0, 1) for one, two in ((box, other), (other, box))
    ), (box, other)


def assert_seen(page):
    """Assert that the picture of a page shows the axes of each chart, and that texts stand out."""
    for chart in page.charts:
        left, top, right, bottom = map(round, chart["panels"][0])
        assert_line(page.picture[top:bottom, left - 3 : left + 3])
        assert_line(page.picture[bottom - 3 : bottom + 3, left:right].T)
    for ink in page.inks:
        assert contrast(ink, page.paper) >= 4.5, (ink, page.paper)


def assert_line(pixels):
    """Assert that a strip of a picture, a few pixels wide, holds a line from end to end."""
    assert (np.abs(pixels - np.median(pixels)) > 0.1).mean(axis=0).max() > 0.95


def contrast(ink, paper):
    """Return the contrast of two colors of CSS, by the formula of WCAG 2."""

    def luminance(color):
        values = np.array([int(value) for value in re.findall(r"\d+", color)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
