"""The numbers behind the picture."""

import matplotlib.image
import numpy as np

from tensorflow_ranger.cli import curves
from tensorflow_ranger.training.update_history import UpdateHistory


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


def test_the_picture_marks_updates(tmp_path):
    def picture(updates_of):
        micro_batches = [
            {"loss": 2.0, "accuracy": 0.5, "updates": updates_of(index)} for index in range(1, 8)
        ]
        epochs = [{"val_loss": 1.0, "val_accuracy": 0.75}]
        history = UpdateHistory(epochs, micro_batches)
        path = tmp_path / "curves.png"
        curves.draw(path, history, updates_of(8), samples=200, batch_size=32, title="title")
        return matplotlib.image.imread(path)

    with_updates = picture(lambda index: index // 4)
    without = picture(lambda index: 0)
    assert with_updates.shape == without.shape
    assert with_updates.shape[0] > 600
    assert with_updates.std() > 0.05
    assert not np.array_equal(with_updates, without)
