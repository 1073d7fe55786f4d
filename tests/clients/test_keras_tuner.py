"""KerasTuner's search over models that train in micro-batches."""

import keras
import keras_tuner
import numpy as np
import pytest

from tensorflow_ranger import microbatch
from tests.clients.whole_and_parts import COMPILE, TOLERANCE, assert_same_path
from tests.models import data

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),  # KerasTuner's oracle
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
    # KerasTuner loads trained weights into a model whose optimizer has no state yet.
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning"),
]

X, Y = data(24)


class Search(keras_tuner.HyperModel):
    """Networks of several widths, trained `size` samples at a time."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def build(self, hp):
        keras.utils.set_random_seed(1)
        width = hp.Choice("width", [3, 5])
        layers = [keras.layers.Dense(width, activation="tanh"), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((6,)), *layers])
        model.compile(keras.optimizers.Adam(0.01), loss="mse", **COMPILE)
        return microbatch(model, self.size)


def searched(size, folder):
    """Return the trained models, the best first, and the scores of all."""
    tuner = keras_tuner.GridSearch(
        Search(size), objective="val_loss", directory=folder, project_name=f"by_{size}"
    )
    tuner.search(X, Y, validation_data=(X, Y), batch_size=12, epochs=3, shuffle=False, verbose=0)
    scores = {
        trial.hyperparameters.get("width"): trial.score for trial in tuner.oracle.trials.values()
    }
    return tuner.get_best_models(2), scores


def test_search(tmp_path, capsys):
    whole, expected = searched(None, tmp_path)
    parts, scores = searched(5, tmp_path)
    assert scores == pytest.approx(expected, rel=TOLERANCE)
    assert len(scores) == 2
    for one, other in zip(parts, whole, strict=True):
        start = [np.zeros_like(weight) for weight in other.get_weights()]
        assert_same_path(one.get_weights(), other.get_weights(), start)
