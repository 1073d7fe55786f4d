"""Losses that are one number, or divide by something only they know, weigh as plain Keras'."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tests.marks import first, first_but
from tests.models import assert_same_weights, assert_trains_as_plain, data, fit

BACKEND = keras.config.backend()


class Adds(layers.Layer):
    """Adds the loss that `function` makes of its inputs."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self._function = function

    def call(self, x):
        self.add_loss(self._function(x))
        return x


def model_with(*middle, loss="mse", cls=keras.Model, activation="tanh"):
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((6,))
    for layer in (layers.Dense(6, activation=activation), *middle, layers.Dense(2)):
        x = layer(x)
    model = cls(inputs, x)
    model.compile("sgd", loss, jit_compile=BACKEND == "jax")
    return model


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: ops.mean(x**2), marks=first),
        pytest.param(lambda x: ops.sum(x**2), marks=first),
        lambda x: ops.sum(x**2, axis=1),
        pytest.param(lambda x: ops.mean(x**2, axis=0), marks=first),
        lambda x: ops.reshape(ops.mean(x**2), (1,)),
        pytest.param(lambda x: ops.sum(x**2, axis=1, keepdims=True), marks=first),
    ],
    ids=["mean", "sum", "per sample", "per unit", "one element", "column"],
)
def test_an_added_loss_counts_as_in_the_batch(function):
    # Six units, and micro-batches of six: a shape tells nothing.
    assert_trains_as_plain(
        lambda: model_with(Adds(function)), *data(36), sizes=(1, 5, 6, 12), tolerance=1e-5
    )


@pytest.mark.skipif(BACKEND != "torch", reason="compiled steps add what the first batch has added")
@pytest.mark.parametrize("is_of_a_weight", [False, True])
def test_the_first_added_loss_comes_later(is_of_a_weight):
    class AddsLater(layers.Layer):
        adds = False

        def call(self, x):
            if self.adds:
                self.add_loss(ops.mean(x**2))
            return x

    def trained(size=None):
        model = model_with(AddsLater())
        if size is not None:
            ranger.microbatch(model, size)
        fit(model, *data(12), 12)
        model.layers[2].adds = not is_of_a_weight
        if is_of_a_weight:
            model.trainable_weights[0].regularizer = keras.regularizers.L2(0.1)
        fit(model, *data(12), 12)
        return model

    whole, parts = trained(), trained(5)
    assert_same_weights(parts, whole)


@first
def test_the_rate_of_a_batch_is_told():
    def sparsity(x):
        rate = ops.mean(ops.sigmoid(x), axis=0)
        return ops.sum(0.1 * ops.log(0.1 / rate) + 0.9 * ops.log(0.9 / (1 - rate)))

    model = ranger.microbatch(model_with(Adds(sparsity, name="sparse")), 4)
    with pytest.warns(UserWarning, match="a loss added by layer 'sparse' is not what the whole"):
        fit(model, *data(12), 12)
    found = ranger.verify(model_with(Adds(sparsity, name="sparse")), data(12), 4)
    assert not found.exact
    assert "A loss added by layer 'sparse' is neither" in str(found)


def test_an_activity_regularizer_under_dropout_is_known():
    drop = layers.Dropout(0.5, seed=1)
    model = model_with(drop, layers.Dense(4, activity_regularizer="l2"))
    fit(ranger.microbatch(model, 4), *data(12), 12)  # a warning would be an error


def test_a_loss_without_a_reduction_is_logged_as_a_mean():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    loss = keras.losses.MeanSquaredError(reduction=None)
    model.compile(keras.optimizers.SGD(0.0), loss, loss_weights=[0.5], jit_compile=BACKEND == "jax")
    x, y = data(12)
    error = np.asarray(model.predict(x, verbose=0)) - y
    history = fit(ranger.microbatch(model, 5), x, y, 12).history
    np.testing.assert_allclose(history["loss"], [0.5 * np.mean(error**2)], rtol=1e-5)


def test_an_activity_regularizer_counts_as_in_the_batch():
    def make():
        keras.utils.set_random_seed(2)
        return model_with(layers.Dense(4, activity_regularizer="l2"))

    assert_trains_as_plain(make, *data(36), tolerance=1e-5)


@first
@pytest.mark.parametrize(
    "reduction",
    first_but(
        ["mean_with_sample_weight"], ["sum_over_batch_size", "mean_with_sample_weight", "sum"]
    ),
)
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_a_class_that_is_ignored_has_no_mass(reduction, weighted):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(36, 4, 6)).astype("float32")
    y = rng.integers(0, 3, size=(36, 4))
    y[rng.uniform(size=y.shape) < np.linspace(0, 0.9, 36)[:, None]] = -1

    def make():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4, 6))
        model = keras.Model(inputs, layers.Dense(3)(inputs))
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1, reduction=reduction
        )
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=BACKEND == "jax")
        return model

    weights = rng.uniform(size=(36, 4)).astype("float32") if weighted else None
    assert_trains_as_plain(make, x, y, sizes=(4, 5), tolerance=1e-5, sample_weight=weights)


def test_the_loss_of_an_ignored_class_by_hand():
    logits = np.log([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]).astype("float32")
    y = np.array([0, -1, 1])
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, kernel_initializer="identity")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model.compile(keras.optimizers.SGD(0.0), loss)
    history = fit(ranger.microbatch(model, 2), logits, y, 3).history
    np.testing.assert_allclose(history["loss"], -(np.log(0.5) + np.log(0.1)) / 2, rtol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Confident(keras.losses.Loss):
    """Leaves out, by a mask of its own, the outputs that are small."""

    def call(self, y_true, y_pred):
        values = ops.mean(ops.square(y_true - y_pred), axis=-1)
        values._keras_mask = ops.abs(ops.stop_gradient(y_pred)[:, 0]) > 0.3
        return values


@pytest.mark.skipif(BACKEND == "jax", reason="JAX's arrays take no attribute outside a trace")
def test_a_mask_that_the_loss_makes_of_the_outputs():
    assert_trains_as_plain(lambda: model_with(loss=Confident()), *data(36), tolerance=1e-5)


def summed(y, y_pred):
    return ops.sum(ops.square(y - y_pred))


def averaged(y, y_pred):
    return ops.mean(ops.square(y - y_pred))


class OwnMean(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return averaged(y, y_pred)


class OwnSum(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 0.01 * summed(y, y_pred)


@pytest.mark.parametrize(
    "settings",
    first_but(
        [{"loss": averaged}, {"cls": OwnSum}],
        [{"loss": averaged}, {"loss": summed}, {"cls": OwnMean}, {"cls": OwnSum}],
    ),
    ids=["mean", "sum", "own mean", "own sum"],
)
def test_one_number_is_found_to_be_a_mean_or_a_sum(settings):
    # Dropout and batch statistics do not hide it: losses are compared at the same outputs.
    assert_trains_as_plain(lambda: model_with(**settings), *data(36), tolerance=1e-5)


def test_a_compute_loss_of_one_element():
    class One(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.reshape(averaged(y, y_pred), (1,))

    parts, whole = model_with(cls=One), model_with(cls=OwnMean)
    assert ranger.verify(parts, data(12), 5).exact
    fit(ranger.microbatch(parts, 5), *data(36), 12)
    fit(whole, *data(36), 12)
    for weight, other in zip(parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-6)


@pytest.mark.parametrize("loss", [keras.losses.Dice, keras.losses.Tversky])
def test_a_loss_in_which_samples_meet_is_named(loss):
    def make():
        return model_with(loss=loss(), activation="sigmoid")

    x, y = data(12)
    y = (y > 0).astype("float32")
    assert ranger.verify(make(), (x, y), 4).exact
    model = ranger.microbatch(make(), 4, loss="shares")
    found = ranger.verify(model, (x, y), 4)
    assert not found.exact
    assert f"The loss '{make().loss.name}' is n" in str(found)
    assert "please report" not in str(found)
    with pytest.warns(UserWarning, match="is not what the whole batch gives"):
        fit(model, x, y, 12)


def test_a_softmax_over_the_batch_is_the_layer():
    class Over(layers.Layer):
        def call(self, x):
            return ops.softmax(x, axis=0) * 10.0

    found = ranger.verify(model_with(Over(name="over")), data(12), 4)
    assert [reason.startswith("Over 'over' looks across") for reason in found.reasons] == [True]


def test_a_loss_that_is_zero_at_first_is_told():
    model = ranger.microbatch(model_with(Adds(lambda x: 0.0 * ops.sum(x), name="late")), 4)
    with pytest.warns(UserWarning, match=r"layer 'late' for a mean over samples.*was zero"):
        fit(model, *data(12), 12)
