"""The charts of a report, as plotly gets them."""

import numpy as np
import pytest

from tensorflow_ranger_cli.report import charts, recorded_run
from tests.application import pages
from tests.marks import first

pytestmark = first

CHARTS = (charts.curves, charts.batch_and_noise, charts.time_and_memory)


def drawn(panel):
    """Return the numbers of the runs that have a curve in a panel."""
    return {trace.meta for trace in panel.figure.data}


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize(
    "change", [None, pages.as_before, pages.begun, pages.diverged, pages.without_peaks]
)
def test_a_panel_draws_a_run_or_says_why_not(chart, change, stopped, noisy):
    if change is not None:
        pages.rewrite(stopped, change)
    for panel in chart([recorded_run.read(noisy), recorded_run.read(stopped)]):
        missing = dict(panel.missing)
        assert drawn(panel) | set(missing) == {0, 1}
        assert not drawn(panel) & set(missing)
        assert all(np.isfinite(trace.y).any() for trace in panel.figure.data)


def test_panels_say_what_they_lack(finished):
    run = recorded_run.read(finished)
    missing = {panel.name: panel.missing for chart in CHARTS for panel in chart([run])}
    assert missing == {
        "loss": [],
        "accuracy": [],
        "samples of an update": [],
        "noise scale (samples), with its 95 % range": [(0, "not recorded")],
        "microseconds per sample": [],
        "peak memory (MB)": [],
    }


def test_curves_are_those_of_the_run(finished):
    run = recorded_run.read(finished)
    by_updates, by_samples, *_ = charts.curves([run])
    for position, panel in enumerate((by_updates, by_samples)):
        training, held_out = panel.figure.data
        for trace, curve in ((training, run.training("loss")), (held_out, run.held_out("loss"))):
            np.testing.assert_allclose(trace.x, curve[position])
            np.testing.assert_allclose(trace.y, curve[2], rtol=1e-6)


def test_the_first_epoch_which_compiles_is_not_among_the_times(finished):
    times, _ = charts.time_and_memory([recorded_run.read(finished)])
    (trace,) = times.figure.data
    assert trace.x.tolist() == [2, 3]


def test_ticks_of_the_noise_scale_are_whole_numbers(noisy):
    _, noise = charts.batch_and_noise([recorded_run.read(noisy)])
    axis = noise.figure.layout.yaxis
    assert dict(zip(axis.ticktext, axis.tickvals, strict=True))["20"] == 20
