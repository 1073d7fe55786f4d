"""The numbers behind the curves of a report."""

import numpy as np
import pytest

from tensorflow_ranger_cli.report import means

pytestmark = pytest.mark.once


def test_values_of_micro_batches_from_means_over_the_epoch():
    rng = np.random.default_rng(0)
    sizes = np.array([32, 32, 32, 4])
    values = rng.random((3, 4))
    running = np.cumsum(values * sizes, axis=1) / np.cumsum(sizes)
    actual = means.single_values(running.ravel(), per_epoch=4, samples=100, batch_size=32)
    np.testing.assert_allclose(actual, values.ravel(), rtol=1e-12)


def test_means_of_windows():
    actual = means.window_means(np.array([1.0, 3.0, 5.0, 10.0, 20.0, 7.0]), np.array([1, 4]))
    np.testing.assert_allclose(actual, [2.0, 35 / 3])
