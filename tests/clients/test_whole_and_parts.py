"""The comparison of the clients fails where micro-batches do differ."""

import keras
import pytest

from tests.clients.whole_and_parts import COMPILE, SAMPLES, assert_parts_equal_whole
from tests.models import data

X, Y = data(SAMPLES)


def normalized_by_the_batch():
    layers = [keras.layers.Dense(5), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), loss="mse", **COMPILE)
    return model


def test_statistics_of_a_micro_batch_are_noticed(float64):
    with pytest.raises(AssertionError, match="of the way apart"):
        assert_parts_equal_whole(normalized_by_the_batch, {"x": X, "y": Y})


def test_statistics_of_a_whole_batch_are_the_same(float64):
    assert_parts_equal_whole(normalized_by_the_batch, {"x": X, "y": Y}, size=7)
