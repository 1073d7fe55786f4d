"""The numbers behind the picture."""

from typing import Any

import numpy as np
import pytest

from tensorflow_ranger_cli.runs import curves
from tensorflow_ranger_cli.runs.update_history import UpdateHistory

pytestmark = pytest.mark.once


def test_values_of_micro_batches_from_means_over_the_epoch():
    rng = np.random.default_rng(0)
    sizes = np.array([32, 32, 32, 4])
    values = rng.random((3, 4))
    running = np.cumsum(values * sizes, axis=1) / np.cumsum(sizes)
    actual = curves.single_values(running.ravel(), per_epoch=4, samples=100, batch_size=32)
    np.testing.assert_allclose(actual, values.ravel(), rtol=1e-12)


def test_means_of_windows():
    means = curves.window_means(np.array([1.0, 3.0, 5.0, 10.0, 20.0, 7.0]), np.array([1, 4]))
    np.testing.assert_allclose(means, [2.0, 35 / 3])


def drawn(updates, *point) -> Any:
    """Return what each panel shows, by label, for seven micro-batches and `updates` after each."""
    micro_batches = [
        {"loss": 2.0 - index / 10, "accuracy": index / 10, "updates": count}
        for index, count in enumerate(updates[:-1], start=1)
    ]
    history = UpdateHistory([{"val_loss": 1.0, "val_accuracy": 0.75}], micro_batches)
    figure = curves.draw(history, updates[-1], 200, 32, "title", *point)
    assert figure.axes[0].get_title(loc="left") == "title"
    return [{line.get_label(): line.get_xydata() for line in panel.lines} for panel in figure.axes]


def test_the_picture_marks_every_update_and_the_last_window():
    for panel, held_out in zip(drawn([0, 0, 0, 1, 1, 1, 1, 2]), (1.0, 0.75), strict=True):
        assert panel["update (2)"][:, 0].tolist() == [4, 7]
        assert panel["window (training mean)"][:, 0].tolist() == [4, 7]
        assert panel["micro-batch (training)"][:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert panel["held out"].tolist() == [[7, held_out]]


def test_a_run_without_updates_is_drawn_all_the_same():
    for panel in drawn([0] * 8):
        assert not any("update" in label for label in panel)
        assert "micro-batch (training)" in panel


def test_points_that_are_whole_batches_are_called_so():
    for panel in drawn([1, 2, 3, 4, 5, 6, 7, 7], "batch"):
        assert len(panel["batch (training)"]) == 7
        assert "update (7)" in panel
