"""The page of a report: one file that needs no other."""

from html import escape
from importlib import metadata, resources

import plotly.io
import plotly.offline

from tensorflow_ranger_cli.report import charts, tables

# The browser itself is told to fetch nothing.
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src \
'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
<script>{library}</script>
</head>
<body>
"""
SETTINGS = {
    "displayModeBar": False,  # dragging zooms, a double click shows all again
    "responsive": True,
    "plotlyServerURL": "",
    "topojsonURL": "",
}


def page(runs):
    """Return the page as a string of HTML.

    Args:
        runs: List of `Recorded`.
    """
    title = ", ".join(run.name for run in runs)
    version = metadata.version("tensorflow-ranger")
    head = HEAD.format(
        title=escape(f"{title} - tensorflow-ranger"),
        style=_file("page.css"),
        library=plotly.offline.get_plotlyjs(),
    )
    different = len({run.settings.task for run in runs}) > 1
    caution = " The runs train different tasks: their losses do not compare." if different else ""
    return "".join(
        [
            head,
            f"<h1>{escape(title)}</h1>\n",
            tables.glance(runs),
            "".join(_difference(run, number) for number, run in enumerate(runs)),
            _switches(runs) if len(runs) > 1 else "",
            _section(
                "Loss and metrics",
                "Solid: training, mean of each update. Dotted: held out, at the end of each epoch."
                + caution,
            ),
            _charts(charts.curves(runs), runs, "curves"),
            _section(
                "Batch and noise scale",
                "The last update of an epoch, or of the run, may have fewer samples.",
            ),
            _charts(charts.batch_and_noise(runs), runs, "batch"),
            _side_by_side(runs, _advice),
            _section(
                "Time and memory",
                "The first of several epochs, which compiles and may search for a micro-batch, is "
                "not among the times. On a CPU, memory is that of the whole process.",
            ),
            _charts(charts.time_and_memory(runs), runs, "time"),
            _section("Candidate micro-batch sizes"),
            _side_by_side(runs, tables.candidates),
            _section(
                "Settings and measurements",
                "Rows in which the runs differ are tinted." if len(runs) > 1 else "",
            ),
            tables.summary(runs),
            _section("Repeat it"),
            "".join(_repeat(run, number) for number, run in enumerate(runs)),
            f'<p class="quiet">Written by tensorflow-ranger {escape(version)}.</p>\n',
            f"<script>\n{_file('page.js')}</script>\n",
            "</body>\n</html>\n",
        ]
    )


def _file(name):
    return (resources.files("tensorflow_ranger_cli.report") / name).read_text(encoding="utf-8")


def _section(title, words=""):
    paragraph = f'<p class="quiet">{words}</p>\n' if words else ""
    return f"<h2>{title}</h2>\n{paragraph}"


def _switches(runs):
    boxes = (
        f'<label><input type="checkbox" checked> {tables.title(run, number)}</label>\n'
        for number, run in enumerate(runs)
    )
    return f'<div id="runs">{"".join(boxes)}</div>\n'


def _charts(panels, runs, name):
    figures = (_chart(panel, runs, f"{name}-{place}") for place, panel in enumerate(panels))
    return f'<div class="panels">{"".join(figures)}</div>\n'


def _chart(panel, runs, name):
    drawn = plotly.io.to_html(
        panel.figure,
        config=SETTINGS,
        include_plotlyjs=False,
        full_html=False,
        default_height=f"{charts.HEIGHT}px",
        div_id=f"chart-{name}",
    )
    missing = (
        f'<p class="quiet">{tables.title(runs[number], number)}: {escape(words)}</p>\n'
        for number, words in panel.missing
    )
    return (
        f"<figure><figcaption>{escape(panel.name)}</figcaption>\n"
        f"{drawn if panel.figure.data else ''}{''.join(missing)}</figure>\n"
    )


def _difference(run, number):
    if run.difference is None:
        return ""
    return f'<p class="quiet">{tables.title(run, number)}: {escape(run.difference)}</p>\n'


def _side_by_side(runs, of):
    blocks = (
        f"<div><h3>{tables.title(run, number)}</h3>\n{of(run)}</div>\n"
        for number, run in enumerate(runs)
    )
    return f'<div class="side">{"".join(blocks)}</div>\n'


def _advice(run):
    advice = run.measured.get("noise_advice")
    if not run.noise or advice is None:
        advice = "Noise scale not recorded: tensorflow-ranger train --noise-scale measures it."
    return f"<p>{escape(advice)}</p>"


def _repeat(run, number):
    exact = "" if run.repeats_exactly else " The size that auto finds may differ, and so rounding."
    command = f'<pre class="command">{escape(run.command)}</pre>\n'
    return f"<h3>{tables.title(run, number)}</h3>\n{command}" + (
        f'<p class="quiet">{exact.strip()}</p>\n' if exact else ""
    )
