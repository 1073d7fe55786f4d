"""The page of a report: one file that needs no other."""

from html import escape
from importlib import metadata

import plotly.io

from tensorflow_ranger_cli import byte_counts
from tensorflow_ranger_cli.report import charts
from tensorflow_ranger_cli.report.charts import NOT_RECORDED, range_in_words

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
:root {{ color-scheme: light }}
body {{ margin: 2rem auto; max-width: 1200px; padding: 0 1rem; background: white; color: #222;
  font: 15px/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.2rem; margin: 2rem 0 .5rem }}
h3 {{ font-size: 1rem; margin: 0 0 .3rem }}
.wide {{ overflow-x: auto }} .plotly-graph-div {{ min-width: 640px }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0;
  border-bottom: 1px solid #ddd }}
thead th {{ border-bottom: 2px solid #888 }} tbody th {{ font-weight: 600; white-space: nowrap }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
.side {{ display: flex; flex-wrap: wrap; gap: 1rem 3rem }} .side > div {{ flex: 1 1 20rem }}
pre {{ background: #f4f4f4; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: .2rem 0 .8rem }}
.swatch {{ display: inline-block; width: .8em; height: .8em; margin-right: .4em }}
.quiet {{ color: #666 }}
@media (max-width: 640px) {{ tbody th {{ white-space: normal }} }}
</style>
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
    different = len({run.settings.task for run in runs}) > 1
    caution = "The runs train different tasks: their losses do not compare. " if different else ""
    return "".join(
        [
            HEAD.format(title=escape(f"{title} - tensorflow-ranger")),
            f"<h1>{escape(title)}</h1>\n",
            f'<p class="quiet">Written by tensorflow-ranger {escape(version)}.</p>\n',
            _summary(runs),
            "".join(_difference(run, number) for number, run in enumerate(runs)),
            _section("Loss and metrics", caution),
            _chart(charts.curves(runs), "curves", first=True),
            _section("Batch and noise scale"),
            _chart(charts.batch_and_noise(runs), "batch"),
            _side_by_side(runs, _advice),
            _section(
                "Time and memory",
                "The first epoch, and the first of one resumed, compiles and may search for a "
                "micro-batch. On a CPU, memory is that of the whole process.",
            ),
            _chart(charts.time_and_memory(runs), "time"),
            _section("Micro-batch sizes that were looked at"),
            _side_by_side(runs, _candidates),
            _section("Repeat it"),
            "".join(_repeat(run, number) for number, run in enumerate(runs)),
            "</body>\n</html>\n",
        ]
    )


def _section(title, words=""):
    paragraph = f'<p class="quiet">{words}</p>\n' if words else ""
    return f"<h2>{title}</h2>\n{paragraph}"


def _chart(figure, name, first=False):
    chart = plotly.io.to_html(
        figure,
        config=SETTINGS,
        include_plotlyjs=first,
        full_html=False,
        default_height=f"{figure.layout.height}px",
        div_id=f"chart-{name}",
    )
    return f'<div class="wide">{chart}</div>\n'


def _title(run, number):
    colour = charts.COLOURS[number % len(charts.COLOURS)]
    return f'<span class="swatch" style="background: {colour}"></span>{escape(run.name)}'


def _summary(runs):
    head = "".join(f"<th>{_title(run, number)}</th>" for number, run in enumerate(runs))
    columns = [_facts(run) for run in runs]
    labels = list(dict.fromkeys(label for facts in columns for label in facts))
    rows = "".join(
        f"<tr><th>{escape(label)}</th>"
        + "".join(f"<td>{escape(facts.get(label, ''))}</td>" for facts in columns)
        + "</tr>\n"
        for label in labels
    )
    return (
        f'<div class="wide"><table id="summary"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _facts(run):
    settings, words = run.settings, run.task.samples
    rate = settings.learning_rate
    facts = {
        "result": _result(run),
        "task": f"{run.task.name}: {run.task.title}",
        "optimizer": settings.optimizer_in_words,
        "learning rate": "the optimizer's own" if rate is None else f"{rate:g}",
        "backend": str(settings.backend),
        "trained by": str(run.measured.get("devices", NOT_RECORDED)),
        "epochs": f"{len(run.epochs)} of {settings.epochs}",
        "updates": f"{run.updates[-1]:,}" if len(run.updates) else "0",
        "samples": f"{run.samples * len(run.epochs):,} {words} seen"
        + ("" if "samples" in run.measured else ", if each batch was full"),
        "effective batch": f"{run.effective_batch:,} {words}",
        "micro-batch": _micro_batch(run),
        "time per sample": _time(run),
        "peak memory": _memory(run),
        "noise scale": range_in_words(run.noise[-1]) if run.noise else NOT_RECORDED,
        "skipped micro-batches": _skipped(run),
    }
    for name in run.metrics:
        facts[f"held-out {name.replace('_', ' ')}, last epoch"] = _held_out(run, name)
    if run.note is not None:
        facts["note"] = "The last checkpoint is damaged: this is the one before it."
    return facts


def _difference(run, number):
    if run.difference is None:
        return ""
    return f'<p class="quiet">{_title(run, number)}: {escape(run.difference)}</p>\n'


def _result(run):
    if run.result is None:
        return NOT_RECORDED if run.is_finished else "none yet"
    return f"held-out {run.result}"


def _held_out(run, name):
    updates, _, values = run.held_out(name)
    if not values:
        return "none yet"
    # What is left of a window becomes an update after the last epoch was judged.
    is_last = updates[-1] == run.updates[-1]
    return f"{values[-1]:.4g}" + ("" if is_last else f", at update {updates[-1]:,}")


def _micro_batch(run):
    settings = run.settings
    if run.chosen is not None:
        return f"{run.chosen}. {run.reason}"
    if settings.microbatch is None:
        count = settings.accumulation_steps
        makes = "one makes an update" if count == 1 else f"{count} make one update"
        return f"{settings.batch_size}. Each batch is a micro-batch, and {makes}."
    return NOT_RECORDED


def _time(run):
    if run.seconds is None:
        return NOT_RECORDED
    several = len(run.per_epoch("seconds")[0]) > 1
    measured = "median epoch after the first" if several else "one epoch, with what was compiled"
    return f"{_duration(run.seconds)} ({measured})"


def _duration(seconds):
    return f"{1e3 * seconds:,.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:,.1f} µs"


def _memory(run):
    if run.memory is not None:
        return byte_counts.in_words(run.memory)
    return f"not told by {run.settings.backend}" if run.is_measured else NOT_RECORDED


def _skipped(run):
    if run.skipped is not None:
        return str(run.skipped)
    return "not counted without RangerOptimizer" if run.is_measured else NOT_RECORDED


def _side_by_side(runs, of):
    blocks = (
        f"<div><h3>{_title(run, number)}</h3>\n{of(run)}</div>\n" for number, run in enumerate(runs)
    )
    return f'<div class="side">{"".join(blocks)}</div>\n'


def _advice(run):
    advice = run.measured.get("noise_advice")
    if not run.noise or advice is None:
        advice = "Noise scale not recorded: tensorflow-ranger train --noise-scale measures it."
    return f"<p>{escape(advice)}</p>"


def _candidates(run):
    if not run.candidates:
        return f"<p>{_none_looked_at(run)}</p>"
    rows = "".join(
        f'<tr><td class="number">{candidate.size}</td>'
        f'<td class="number">{candidate.segments or "-"}</td>'
        f'<td class="number">{_or_dash(candidate.memory, byte_counts.in_words)}</td>'
        f'<td class="number">{_or_dash(candidate.seconds, _duration)}</td>'
        f"<td>{_mark(candidate, run)}</td></tr>\n"
        for candidate in run.candidates
    )
    return (
        "<table><thead><tr><th>size</th><th>segments</th><th>memory</th><th>per sample</th>"
        "<th></th></tr></thead>\n"
        f"<tbody>{rows}</tbody></table>"
    )


def _none_looked_at(run):
    if run.settings.microbatch is None:
        return "Each batch is a micro-batch: there was nothing to choose."
    return NOT_RECORDED


def _or_dash(value, words):
    return "-" if value is None else escape(words(value))


def _mark(candidate, run):
    if not candidate.fits:
        return "does not fit"
    return "chosen" if candidate.size == run.chosen else ""


def _repeat(run, number):
    exact = "" if run.repeats_exactly else " The size that auto finds may differ, and so rounding."
    return f'<h3>{_title(run, number)}</h3>\n<pre class="command">{escape(run.command)}</pre>\n' + (
        f'<p class="quiet">{exact.strip()}</p>\n' if exact else ""
    )
