"""``tensorflow-ranger train --trim-padding``: less to compute, and the report tells it."""

import re

import keras
import numpy as np

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.runs.checkpoint import MEASUREMENTS
from tensorflow_ranger_cli.tasks.data import reviews
from tests.application import slices
from tests.application.pages import Table, facts, rewrite
from tests.marks import first

pytestmark = first


def weights(directory):
    model = keras.saving.load_model(directory / "model.keras")
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def test_weights_are_those_without_it_and_the_report_tells_what_is_left_out(tmp_path):
    trimmed, padded = tmp_path / "trimmed", tmp_path / "padded"
    assert slices.train("reviews", trimmed, "--epochs", "2", "--trim-padding") == 0
    assert slices.train("reviews", padded, "--epochs", "2") == 0
    for weight, expected in zip(weights(trimmed), weights(padded), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)
    page = tmp_path / "page.html"
    assert main(["report", str(trimmed), str(padded), "--output", str(page)]) == 0
    told = re.match(r"(\d+) of the first batch's (\d+) padded time steps", facts(page)["padding"])
    assert told is not None
    computed, steps = map(int, told.groups())
    words = np.count_nonzero(slices.slice_of("reviews")[0][0] != reviews.PADDING) / slices.TRAINING
    assert steps == 48 * reviews.WORDS
    assert 0.5 * 48 * words < computed < 0.9 * steps
    assert facts(page, 2)["padding"] == "not trimmed: --trim-padding does"
    header, *rows = Table(page, "glance").rows
    assert header[-1] == "padded time steps computed"
    assert [row[-1] for row in rows] == [f"{computed / steps:.0%}", "100%"]
    assert main(["report", str(padded), "--output", str(page)]) == 0
    assert Table(page, "glance").rows[0][-1] == "peak memory"


def test_a_run_of_before_the_numbers_were_recorded_has_none(tmp_path):
    trimmed = tmp_path / "trimmed"
    assert slices.train("reviews", trimmed, "--epochs", "1", "--trim-padding") == 0
    rewrite(trimmed, lambda ours: ours[MEASUREMENTS].pop("time_steps"))
    page = tmp_path / "page.html"
    assert main(["report", str(trimmed), "--output", str(page)]) == 0
    assert Table(page, "glance").rows[1][-1] == "-"
    assert "padded time steps" in facts(page)["padding"]
