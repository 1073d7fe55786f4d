"""Models that train in micro-batches behind scikit-learn's interface."""

import functools

import keras
import numpy as np
import pytest
import scikeras.wrappers
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tensorflow_ranger import microbatch
from tests.clients.whole_and_parts import COMPILE, assert_same_path

pytestmark = pytest.mark.usefixtures("float64")

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 6))
Y = np.where(X[:, 0] > 0, "positive", "negative")
FIT = {"batch_size": 12, "epochs": 3, "shuffle": False, "verbose": 0}


def network(size, outputs, loss):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(outputs, "softmax")]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.Adam(0.01), loss=loss, **COMPILE)
    return microbatch(model, size)


def keras_wrapper(size):
    def build(X, y):
        return network(size, y.shape[1], "categorical_crossentropy")

    return keras.wrappers.SKLearnClassifier(build, fit_kwargs=FIT)


def scikeras_wrapper(size):
    build = functools.partial(network, size, 2, "sparse_categorical_crossentropy")
    return scikeras.wrappers.KerasClassifier(build, **FIT)


WRAPPERS = pytest.mark.parametrize("wrapper", [keras_wrapper, scikeras_wrapper])


@WRAPPERS
def test_classifier(wrapper):
    whole, parts = (wrapper(size).fit(X, Y) for size in (None, 5))
    assert parts.model_.microbatch_plan.chosen == 5
    start = network(None, 2, "sparse_categorical_crossentropy").get_weights()
    assert_same_path(parts.model_.get_weights(), whole.model_.get_weights(), start)
    assert set(parts.predict(X)) <= {"positive", "negative"}


@WRAPPERS
def test_cross_validation_of_a_pipeline(wrapper):
    expected, scores = (
        cross_val_score(make_pipeline(StandardScaler(), wrapper(size)), X, Y, cv=2)
        for size in (None, 5)
    )
    np.testing.assert_array_equal(scores, expected)
