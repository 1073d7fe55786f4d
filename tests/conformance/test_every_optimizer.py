"""One table over all optimizers: each row is wrapped, saved, traced and trained the same way."""

import copy
import json

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tests.driver import Driver
from tests.marks import first_but
from tests.models import assert_same_weights, data, fit, network

WRAPPERS = {"optimizer", "lossscaleoptimizer", "multioptimizer"}
CLASSES = {
    name.lower(): value
    for name, value in vars(keras.optimizers).items()
    if isinstance(value, type)
    and issubclass(value, keras.optimizers.Optimizer)
    and name.lower() not in WRAPPERS
}
if keras.config.backend() == "tensorflow" and keras.__version__.startswith("3.12."):
    del CLASSES["muon"]  # plain `fit` fails with it there
NAMES = [*CLASSES, "loss scale"]
# One of each kind: the usual rule, a factored one, one of matrices, one that scales the loss.
KINDS = {"adam", "adafactor", "muon", "loss scale"}
every_optimizer = pytest.mark.parametrize("name", first_but(KINDS, NAMES))


def make(name):
    if name == "loss scale":
        return keras.optimizers.LossScaleOptimizer(make("adam"), initial_scale=8.0)
    return RangerOptimizer(inner=plain(name), accumulation_steps=2)


def plain(name):
    if name == "loss scale":
        return keras.optimizers.LossScaleOptimizer(plain("adam"), initial_scale=8.0)
    settings = {"momentum": 0.9} if name == "sgd" else {}
    return CLASSES[name](learning_rate=0.05, **settings)


@every_optimizer
def test_config_round_trip(name):
    optimizer = make(name)
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(copy.deepcopy(config))
    assert keras.optimizers.serialize(again) == config


@every_optimizer
def test_the_second_call_does_not_trace(name):
    driver = Driver(make(name), [np.ones((3, 2)), np.ones(2)])
    for _ in range(5):
        driver.apply([np.ones((3, 2)), np.ones(2)])
    assert int(driver.optimizer.iterations) == 2
    assert driver.traces == (5 if keras.config.backend() == "torch" else 1)


@every_optimizer
def test_save_load_and_train_on(name, tmp_path):
    x, y = data(24)
    model = network(make(name))
    for start in (0, 4, 8):
        model.train_on_batch(x[start : start + 4], y[start : start + 4])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for other in (model, loaded):
        other.train_on_batch(x[12:16], y[12:16])
    assert int(loaded.optimizer.iterations) == 2
    assert_same_weights(loaded, model, tolerance=0)


@pytest.mark.parametrize(
    "name",
    first_but(["adam", "adafactor"], sorted({*NAMES} - {"nadam"})),  # Keras' own Nadam fails here
)
def test_bfloat16_variables(name):
    gradients = [np.linspace(-2, 2, 8).reshape(4, 2)]
    driver = Driver(make(name), [np.ones((4, 2))], "bfloat16")
    for _ in range(6):
        driver.apply(gradients)
    expected = Driver(plain(name), [np.ones((4, 2))], "bfloat16")
    for _ in range(3):
        expected.apply(gradients)
    np.testing.assert_array_equal(driver.weights[0], expected.weights[0])


@every_optimizer
def test_two_halves_are_the_whole(name):
    x, y = data(32)
    model = network(make(name))
    fit(model, x, y, batch_size=4)
    expected = network(plain(name))
    fit(expected, x, y, batch_size=8)
    assert_same_weights(model, expected, tolerance=1e-5)
