"""The charts of a report."""

import html
import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tensorflow_ranger_cli.report.recorded_run import thinned

# Okabe and Ito's colours, which the colour-blind tell apart, without the palest.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
GRID = {"gridcolor": "#e6e6e6", "linecolor": "#888", "zeroline": False, "showline": True}
NOT_RECORDED = "not recorded"
PANEL = 300  # pixels


def curves(runs):
    """Return a figure of loss and metrics, against updates and against samples.

    Args:
        runs: List of `Recorded`.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    figure = make_subplots(len(names), 2, shared_yaxes=True, horizontal_spacing=0.04)
    for number, run in enumerate(runs):
        for name in run.metrics:
            row = names.index(name) + 1
            *positions, means = run.training(name)
            *ends, values = run.held_out(name)
            for column in (1, 2):
                place = {"row": row, "col": column}
                line = _line(run, number, "training, mean of an update")
                figure.add_trace(go.Scatter(x=positions[column - 1], y=means, **line), **place)
                line = _line(run, number, "held out, at the end of an epoch", dash="dot")
                line["mode"] = "lines+markers"
                figure.add_trace(go.Scatter(x=ends[column - 1], y=values, **line), **place)
    for row, name in enumerate(names, 1):
        figure.update_yaxes(title_text=html.escape(name.replace("_", " ")), row=row, col=1)
        figure.update_xaxes(title_text="updates", row=row, col=1)
        figure.update_xaxes(title_text="training samples seen", row=row, col=2)
        untrained = [run for run in runs if name in run.metrics and not run.epochs]
        _note(figure, untrained, 1, "no epoch yet", row=row)
    return _dressed(figure, len(names))


def batch_and_noise(runs):
    """Return a figure of the effective batch and of the noise scale, against updates.

    Args:
        runs: List of `Recorded`.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for number, run in enumerate(runs):
        line = _line(run, number, "effective batch")
        line["line"]["shape"] = "hv"
        x, y = thinned(run.updates), thinned(run.batches, max)
        figure.add_trace(go.Scatter(x=x, y=y, **line), row=1, col=1)
        rows = [row for row in run.noise if 0 < row["noise_scale"] < math.inf]
        scale = [row["noise_scale"] for row in rows]
        high = [row["noise_scale_high"] for row in rows]
        line = _line(run, number, "noise scale, 95 % range")
        line["mode"] = "lines+markers"
        line["error_y"] = {
            "type": "data",
            "symmetric": False,
            # A range without end has no bar upwards; the words beside the point say so.
            "array": [h - s if h < math.inf else 0 for h, s in zip(high, scale, strict=True)],
            "arrayminus": [row["noise_scale"] - row["noise_scale_low"] for row in rows],
        }
        line["text"] = [range_in_words(row) for row in rows]
        x = [row["updates"] for row in rows]
        figure.add_trace(go.Scatter(x=x, y=scale, **line), row=1, col=2)
    figure.update_xaxes(title_text="updates")
    figure.update_yaxes(title_text="samples of an update", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="noise scale (samples)", type="log", row=1, col=2)
    _note(figure, [run for run in runs if not run.epochs], 1, "no epoch yet")
    _note(figure, [run for run in runs if not run.noise], 2, NOT_RECORDED)
    hidden = [
        run
        for run in runs
        if run.noise and not any(0 < row["noise_scale"] < math.inf for row in run.noise)
    ]
    _note(figure, hidden, 2, "no finite noise scale")
    return _dressed(figure, 1)


def time_and_memory(runs):
    """Return a figure of the time per sample and the peak of memory, by epoch.

    Args:
        runs: List of `Recorded`.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for number, run in enumerate(runs):
        for column, (what, unit) in enumerate({"seconds": 1e6, "memory": 1e-6}.items(), 1):
            epochs, values = run.per_epoch(what)
            line = _line(run, number, "time and memory")
            line["mode"], line["name"] = "lines+markers", html.escape(run.name)
            y = [value * unit for value in values]
            figure.add_trace(go.Scatter(x=epochs, y=y, **line), row=1, col=column)
    figure.update_xaxes(title_text="epoch", dtick=1 if _most_epochs(runs) <= 20 else None)
    figure.update_yaxes(title_text="microseconds per sample", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="peak memory (MB)", rangemode="tozero", row=1, col=2)
    unmeasured = [run for run in runs if not run.is_measured]
    _note(figure, unmeasured, 1, NOT_RECORDED)
    _note(figure, unmeasured, 2, NOT_RECORDED)
    untold = [run for run in runs if run.is_measured and run.memory is None]
    for run in untold:
        _note(figure, [run], 2, f"not told by {run.settings.backend}")
    return _dressed(figure, 1)


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


def _most_epochs(runs):
    return max(len(run.epochs) for run in runs)


def _line(run, number, words, dash="solid"):
    # Plotly reads some HTML in names.
    return {
        "name": f"{html.escape(run.name)}: {words}",
        "legendgroup": f"{number} {words}",
        "mode": "lines",
        "line": {"color": COLOURS[number % len(COLOURS)], "dash": dash, "width": 1.8},
    }


def _has_points(trace):
    return any(value is not None and math.isfinite(value) for value in trace.y)


def _note(figure, runs, column, words, row=1):
    """Say in a panel for which runs it has nothing."""
    taken = sum(1 for note in figure.layout.annotations if note.name == f"{row} {column}")
    for number, run in enumerate(runs, taken):
        figure.add_annotation(
            name=f"{row} {column}",
            text=f"{html.escape(run.name)}: {html.escape(words)}",
            showarrow=False,
            xref="x domain",
            yref="y domain",
            x=0.5,
            # At the bottom, for times and memory begin at 0: the curves run above.
            y=0.02 + 0.09 * number,
            yanchor="bottom",
            bgcolor="rgba(255, 255, 255, 0.8)",
            font={"color": "#666"},
            row=row,
            col=column,
        )


def _show_empty_panels(figure):
    """Let plotly draw the panels without a curve.

    It draws no panel without a trace, and moves the notes of such a panel into another one.
    """
    drawn = {trace.yaxis or "y" for trace in figure.data}
    empty = {"type": "linear", "range": [0, 1], "dtick": 1, "showticklabels": False}
    for x, y in zip(figure.select_xaxes(), figure.select_yaxes(), strict=True):
        if x.anchor in drawn:
            continue
        x.update(empty)
        y.update(empty)
        invisible = {"x": [0.5], "y": [0.5], "opacity": 0, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(**invisible, xaxis=y.anchor, yaxis=x.anchor, showlegend=False))


def _dressed(figure, rows):
    figure.update_xaxes(**GRID)
    figure.update_yaxes(**GRID)
    # Plotly finds no place for a curve without a number, and logs errors.
    figure.data = [trace for trace in figure.data if _has_points(trace)]
    named = set()
    for trace in figure.data:
        trace.showlegend = trace.legendgroup not in named
        named.add(trace.legendgroup)
    _show_empty_panels(figure)
    figure.update_layout(
        template="none",
        height=PANEL * rows + 100,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
        hoverlabel={"namelength": -1},
    )
    return figure
