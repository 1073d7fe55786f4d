"""The charts of a report, as plotly gets them."""

import math

import keras
import pytest

from tensorflow_ranger_cli.report import charts, recorded_run
from tests.application import pages
from tests.marks import first

pytestmark = first

CHARTS = (charts.curves, charts.batch_and_noise, charts.time_and_memory)


def axes(item):
    return item.xaxis or "x", item.yaxis or "y"


def assert_every_panel_has_a_trace(figure):
    """Assert what plotly.js needs: it draws no panel without a trace that has a point.

    The notes and the titles of such a panel end up in another.
    """
    x, y = list(figure.select_xaxes()), list(figure.select_yaxes())
    panels = {(y.anchor, x.anchor) for x, y in zip(x, y, strict=True)}
    assert len(panels) == len(x)
    drawn = [trace for trace in figure.data if any(map(math.isfinite, trace.y))]
    assert {axes(trace) for trace in drawn} == panels
    for note in figure.layout.annotations:
        assert tuple(ref.removesuffix(" domain") for ref in (note.xref, note.yref)) in panels


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("change", [None, pages.as_before, pages.begun, pages.diverged])
def test_every_panel_has_a_trace(chart, change, stopped):
    if change is not None:
        pages.rewrite(stopped, change)
    assert_every_panel_has_a_trace(chart([recorded_run.read(stopped)]))


@pytest.mark.parametrize("chart", CHARTS)
def test_panels_of_several_runs_have_no_trace_to_spare(chart, finished, noisy):
    figure = chart([recorded_run.read(finished), recorded_run.read(noisy)])
    assert_every_panel_has_a_trace(figure)
    spare = [axes(trace) for trace in figure.data if trace.opacity == 0]
    untold = chart is charts.time_and_memory and keras.config.backend() == "jax"
    assert spare == ([("x2", "y2")] if untold else [])


def test_the_trace_of_an_empty_panel_is_not_seen(finished):
    figure = charts.batch_and_noise([recorded_run.read(finished)])
    (trace,) = (trace for trace in figure.data if axes(trace) == ("x2", "y2"))
    assert (trace.opacity, trace.hoverinfo, trace.showlegend) == (0, "skip", False)
    assert [note.text for note in figure.layout.annotations] == [f"{finished}: not recorded"]
