"""Metrics are plain Keras' numbers, functions of the batch too."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tensorflow_ranger.training import metrics_of_batch
from tests.marks import first
from tests.models import assert_trains_as_plain, data, fit

BACKEND = keras.config.backend()


def f1(y_true, y_pred):
    true, predicted = ops.cast(y_true > 0, "float32"), ops.cast(y_pred > 0, "float32")
    return 2 * ops.sum(true * predicted) / (ops.sum(true) + ops.sum(predicted))


def largest(y_true, y_pred):
    return ops.max(ops.abs(y_true - y_pred))


def per_sample(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


class Batches(keras.metrics.Metric):
    """Adds up the largest error of each batch."""

    def __init__(self, name="batches", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = self.add_variable((), "zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(largest(y_true, y_pred))

    def result(self):
        return ops.convert_to_tensor(self.total)


def make(metrics, cls=keras.Sequential, **settings):
    keras.utils.set_random_seed(1)
    model = cls([keras.Input((6,)), layers.Dense(5, activation="tanh"), layers.Dense(2)])
    settings = {"jit_compile": BACKEND == "jax", **settings}
    model.compile("sgd", "mse", metrics=metrics(), **settings)
    return model


@pytest.mark.parametrize(
    "metrics",
    [
        lambda: [f1, largest],
        pytest.param(lambda: [per_sample, "mae"], marks=first),
        lambda: [Batches(), keras.metrics.R2Score()],
        pytest.param(lambda: [keras.metrics.MeanMetricWrapper(f1, name="wrapped")], marks=first),
        pytest.param(
            lambda: [keras.losses.dice, keras.losses.MeanSquaredError(name="loss_as_metric")],
            marks=first,
        ),
    ],
    ids=["functions", "per sample", "own metric", "wrapper", "losses"],
)
def test_history_is_plain_keras(metrics):
    # 36 samples in batches of 13: the last batch is shorter, and no size divides it.
    assert_trains_as_plain(
        lambda: make(metrics), *data(36), sizes=(4, 5), batch_size=13, tolerance=1e-5
    )


@first
def test_two_outputs_with_weights():
    def two():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        outputs = {name: layers.Dense(2, name=name)(inputs) for name in ("a", "b")}
        model = keras.Model(inputs, outputs)
        model.compile(
            "sgd",
            {"a": "mse", "b": "mae"},
            metrics={"a": [f1], "b": ["mae", largest]},
            weighted_metrics={"a": [Batches()], "b": [per_sample]},
            jit_compile=BACKEND == "jax",
        )
        return model

    x, y = data(36)
    weights = np.linspace(0, 1, 36)
    assert_trains_as_plain(two, x, {"a": y, "b": y}, sample_weight=weights, tolerance=1e-5)


class Own(keras.Sequential):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "spread": ops.std(y_pred), "inputs": ops.max(x)}


def test_compute_metrics_sees_the_whole_batch():
    assert_trains_as_plain(lambda: make(lambda: ["mae"], Own), *data(36), tolerance=1e-5)


class Masked(keras.metrics.Metric):
    """Adds up the largest output of each batch that is not masked."""

    def __init__(self, **kwargs):
        super().__init__(name="masked", **kwargs)
        self.total = self.add_variable((), "zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        mask = getattr(y_pred, "_keras_mask", None)
        if mask is not None:
            mask = ops.expand_dims(ops.cast(mask, y_pred.dtype), -1)
            self.total.assign_add(ops.max(mask * y_pred))

    def result(self):
        return ops.convert_to_tensor(self.total)


def test_masks_reach_the_metric():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 5, (24, 4))
    tokens[np.arange(4) >= rng.integers(1, 5, (24, 1))] = 0

    def token_model():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        x = layers.Embedding(5, 3, mask_zero=True)(inputs)
        model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(2))(x))
        model.compile("sgd", "mse", metrics=[Masked(), "mae"], jit_compile=BACKEND == "jax")
        return model

    y = rng.normal(size=(24, 4, 2)).astype("float32")
    assert_trains_as_plain(token_model, tokens, y, tolerance=1e-5)


def by_class(y_true, y_pred):
    """One number per sample, weighted by how rare its class is in the batch."""
    positive = ops.mean(y_true)
    return ops.mean(ops.abs(y_true - y_pred), axis=-1) / (ops.mean(y_true, axis=-1) + positive + 1)


def test_samples_that_meet_only_in_rare_samples_are_found():
    x, _ = data(72)
    y = np.zeros((72, 2), "float32")
    y[[30, 60]] = 1  # no sample among the first ones, which are compared
    assert_trains_as_plain(
        lambda: make(lambda: [by_class]), x, y, sizes=(5,), batch_size=36, tolerance=1e-5
    )


@first
def test_outputs_without_a_second_axis():
    def numbers():
        keras.utils.set_random_seed(1)
        metrics = ["mae", keras.metrics.RootMeanSquaredError()]
        model = keras.Sequential([keras.Input((6,)), layers.Dense(1), layers.Reshape(())])
        model.compile("sgd", "mse", metrics=metrics, jit_compile=BACKEND == "jax")
        return model

    x, y = data(36)
    assert_trains_as_plain(numbers, x, y[:, 0], batch_size=13, tolerance=1e-5)


class Watched(layers.Layer):
    """Follows the mean and the sum of what it is given, as layers of autoencoders do."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="mean")
        self.each = keras.metrics.Mean(name="each")
        self.sum = keras.metrics.Sum(name="sum")

    def call(self, x):
        squares = ops.mean(ops.square(x), axis=-1)
        self.mean.update_state(ops.mean(squares))
        self.each.update_state(squares)
        self.sum.update_state(squares)
        return x


@pytest.mark.skipif(BACKEND == "jax", reason="Keras' own step on JAX fails there")
def test_metrics_that_layers_update():
    def watched():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(5), Watched(), layers.Dense(2)])
        model.compile("sgd", "mse", metrics=["mae"], jit_compile=BACKEND == "jax")
        return model

    assert_trains_as_plain(watched, *data(38), batch_size=12, tolerance=1e-5)


def test_outputs_that_are_too_large_are_not_held(monkeypatch):
    monkeypatch.setattr(metrics_of_batch, "MOST_BYTES", 10)
    model = ranger.microbatch(make(lambda: [largest, "mae"]), 5)
    with pytest.warns(UserWarning, match="largest are functions of the batch, and the outputs"):
        history = fit(model, *data(12), 12).history
    y_pred = make(list).predict(data(12)[0], verbose=0)
    errors = np.abs(y_pred - data(12)[1])
    parts = [errors[:5].max(), errors[5:10].max(), errors[10:].max()]
    np.testing.assert_allclose(history["largest"], np.dot(parts, [5, 5, 2]) / 12, rtol=1e-5)
    np.testing.assert_allclose(history["mae"], errors.mean(), rtol=1e-5)
