"""The dtypes of slots where JAX computes in float32 what Keras calls float64."""

from typing import Any

import keras
import pytest

import tensorflow_ranger as ranger
from tests.models import assert_same_weights, data, fit, network

pytestmark = [
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="float64 is switched off on JAX only"
    ),
    pytest.mark.filterwarnings(
        "ignore:Explicitly requested dtype:UserWarning"
    ),  # plain Keras', too
]


@pytest.fixture(autouse=True)
def floatx():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def plain():
    return keras.optimizers.SGD(0.1, momentum=0.9)


@pytest.mark.parametrize(
    "settings", [{}, {"lookahead": ranger.Lookahead(k=2, alpha=1.0), "skip_nonfinite": False}]
)
def test_a_window_trains_as_plain_keras(settings):
    x, y = data()
    expected, model = network(plain()), network(ranger.RangerOptimizer(0.1, 0.9, **settings))
    fit(expected, x, y, 24, epochs=2)
    fit(model, x, y, 6, epochs=2)
    assert_same_weights(model, expected)
    sums = [v for v in model.optimizer.variables if "window_sum" in v.name]
    assert {v.dtype for v in sums} == {"float32"}


@pytest.mark.parametrize("cls", [keras.optimizers.SGD, ranger.RangerOptimizer])
def test_micro_batches_train_as_plain_keras(cls):
    x, y = data()
    settings: Any = {"accumulation_steps": 1} if cls is ranger.RangerOptimizer else {}
    optimizer = cls(learning_rate=0.1, momentum=0.9, **settings)
    expected, model = network(plain()), ranger.microbatch(network(optimizer), 6)
    fit(expected, x, y, 24, epochs=2)
    fit(model, x, y, 24, epochs=2)
    assert_same_weights(model, expected)


def test_verify_knows_that_it_rounds_to_float32():
    assert ranger.verify(network("sgd"), data(), 6).exact


def test_float64_sums_that_were_asked_for_need_float64():
    model = network(ranger.RangerOptimizer(accumulator_dtype="float64"))
    with pytest.raises(ValueError, match="accumulator_dtype='float64' is switched off on JAX"):
        fit(model, *data(), 6)
