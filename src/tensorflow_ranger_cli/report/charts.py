"""The charts of a report."""

import html
import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from tensorflow_ranger_cli.report.recorded_run import Recorded, thinned

# Okabe and Ito's colours, which the colour-blind tell apart, without the palest.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
NOT_RECORDED = "not recorded"
NO_PEAK = "not told by the operating system"
HEIGHT = 280  # pixels
# Plotly would write 2 for 20 between 10 and 100.
LOG_TICKS = [factor * 10**power for power in range(9) for factor in (1, 1.5, 2, 3, 5, 7)]


class Panel(NamedTuple):
    """One chart, of all runs.

    Attributes:
        name: What it shows.
        figure: Plotly figure. Each trace has the number of its run as `meta`.
        missing: List of ``(number, words)``: why a run has no curve in it.
    """

    name: str
    figure: go.Figure
    missing: list[tuple[int, str]]


def curves(runs):
    """Return the panels of loss and metrics, against updates and against samples.

    Args:
        runs: List of `Recorded`.
    """
    panels = []
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        for position, axis in enumerate(("updates", "training samples seen")):
            traces = []
            for number, run in enumerate(runs):
                for words, curve in (
                    ("training", run.training(name)),
                    ("held out", run.held_out(name)),
                ):
                    trace = _trace(run, number, curve[position], curve[2], words)
                    if words == "held out":
                        trace.update(mode="lines+markers", line_dash="dot")
                    traces.append(trace)

            def why(run, name=name):
                if name not in run.metrics:
                    return None
                return "no finite number" if run.epochs else "no epoch yet"

            panels.append(_panel(name.replace("_", " "), axis, traces, runs, why))
    return panels


def batch_and_noise(runs):
    """Return the panels of the effective batch and of the noise scale, against updates.

    Args:
        runs: List of `Recorded`.
    """
    batches = [
        _trace(run, number, thinned(run.updates), thinned(run.batches, max)).update(line_shape="hv")
        for number, run in enumerate(runs)
    ]
    scales = [_noise_trace(run, number) for number, run in enumerate(runs)]
    noise = _panel(
        "noise scale (samples), with its 95 % range",
        "updates",
        scales,
        runs,
        lambda run: "no finite noise scale" if run.noise else NOT_RECORDED,
    )
    ticks = {"tickvals": LOG_TICKS, "ticktext": [f"{tick:,g}" for tick in LOG_TICKS]}
    noise.figure.update_yaxes(type="log", **ticks)
    return [
        _panel("samples of an update", "updates", batches, runs, lambda run: "no epoch yet", True),
        noise,
    ]


def time_and_memory(runs):
    """Return the panels of the time per sample and the peak of memory, by epoch.

    The first epoch of several is left out of the times: it compiles.

    Args:
        runs: List of `Recorded`.
    """
    times, peaks = [], []
    for number, run in enumerate(runs):
        epochs, seconds = (values[1:] or values for values in run.per_epoch("seconds"))
        times.append(_trace(run, number, epochs, [1e6 * value for value in seconds]))
        epochs, memory = run.per_epoch("memory")
        peaks.append(_trace(run, number, epochs, [1e-6 * value for value in memory]))

    def why(run):
        return NO_PEAK if run.is_measured else NOT_RECORDED

    panels = [
        _panel("microseconds per sample", "epoch", times, runs, why, from_zero=True),
        _panel("peak memory (MB)", "epoch", peaks, runs, why, from_zero=True),
    ]
    for panel in panels:
        panel.figure.update_traces(mode="lines+markers")
        panel.figure.update_xaxes(dtick=1 if max(len(run.epochs) for run in runs) <= 10 else None)
    return panels


def range_in_words(row):
    """Return a noise scale with its range.

    Args:
        row: A row of the history.
    """
    scale, low, high = (row[f"noise_scale{end}"] for end in ("", "_low", "_high"))
    if math.isnan(scale):
        return "not known yet"
    if math.isinf(scale):
        return "larger than these batches can tell"
    end = "no end" if math.isinf(high) else f"{high:,.0f}"
    return f"{scale:,.0f} samples, 95 % range {low:,.0f} to {end}"


def _noise_trace(run, number):
    rows = [row for row in run.noise if 0 < row["noise_scale"] < math.inf]
    scale = np.array([row["noise_scale"] for row in rows])
    low, high = (np.array([row[f"noise_scale_{end}"] for row in rows]) for end in ("low", "high"))
    # A range without end has no bar upwards; the words beside the point say so.
    above = np.where(np.isfinite(high), high - scale, 0)
    error = {"type": "data", "symmetric": False, "array": above, "arrayminus": scale - low}
    trace = _trace(run, number, [row["updates"] for row in rows], scale)
    words = [range_in_words(row) for row in rows]
    return trace.update(mode="lines+markers", error_y=error, text=words)


def _trace(run: Recorded, number, x, y, words=""):
    # Plotly reads some HTML in names. Four bytes for a number keep the page small.
    return go.Scatter(
        x=np.asarray(x, "float32"),
        y=np.asarray(y, "float32"),
        name=html.escape(f"{run.name}: {words}" if words else run.name),
        meta=number,
        mode="lines",
        line={"color": COLOURS[number % len(COLOURS)], "width": 1.8},
    )


def _panel(name, axis, traces, runs, why, from_zero=False):
    # Plotly finds no place for a curve without a number, and logs errors.
    figure = go.Figure([trace for trace in traces if np.isfinite(trace.y).any()])
    drawn = {trace.meta for trace in figure.data}
    absent = [(number, why(run)) for number, run in enumerate(runs) if number not in drawn]
    figure.update_xaxes(title_text=axis)
    figure.update_yaxes(rangemode="tozero" if from_zero else "normal")
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(zeroline=False, showline=True, automargin=True)
    figure.update_layout(
        template="none",
        height=HEIGHT,
        showlegend=False,
        margin={"l": 45, "r": 15, "t": 10, "b": 45},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        hoverlabel={"namelength": -1},
    )
    return Panel(name, figure, [(number, words) for number, words in absent if words])
