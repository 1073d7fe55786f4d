"""History of epochs and micro-batches beside the updates."""

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tensorflow_ranger_cli.runs.update_history import UpdateHistory


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(RangerOptimizer(0.01, accumulation_steps=3), loss="mse", metrics=["mae"])
    return model


def fit(model, history, **arguments):
    x = np.random.default_rng(0).random((10, 2))
    return model.fit(
        x, x[:, :1], batch_size=2, shuffle=False, callbacks=[history], verbose=0, **arguments
    )


def test_updates_are_counted_in_windows_that_span_epochs(model):
    history = UpdateHistory()
    logged = fit(model, history, epochs=2).history
    assert [row["updates"] for row in history.micro_batches] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert [row["updates"] for row in history.epochs] == [1, 3]
    assert [row["epoch"] for row in history.epochs] == [1, 2]
    for name in ("loss", "mae"):
        assert [row[name] for row in history.epochs] == logged[name]
        # The last micro-batch of an epoch has the mean over all of it.
        assert [history.micro_batches[i][name] for i in (4, 9)] == logged[name]


def test_training_is_as_it_is_without(model):
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(RangerOptimizer(0.01, accumulation_steps=3), loss="mse", metrics=["mae"])
    fit(model, UpdateHistory(), epochs=2)
    fit(twin, keras.callbacks.Callback(), epochs=2)
    for value, expected in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_record_is_continued_and_the_old_one_left_alone(model):
    old = {"epochs": [{"epoch": 1, "updates": 0}], "micro_batches": [{"updates": 0}]}
    history = UpdateHistory(**old)
    fit(model, history, initial_epoch=1, epochs=2)
    assert [row["epoch"] for row in history.epochs] == [1, 2]
    assert len(history.micro_batches) == 6
    assert len(old["epochs"]) == len(old["micro_batches"]) == 1
