"""A backward pass that runs layers again gives the same weights, seeds and state."""

import functools
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tests.marks import first, first_but, thorough_but
from tests.models import MODES, assert_same_variables, fit

BACKEND = keras.config.backend()
BATCH, SIZE, EPOCHS = 8, 3, 10  # 20 updates, and a remainder
LENGTH, FEATURES = 5, 6
FIRST, *OTHERS = MODES
# Batch statistics of three samples enlarge roundings.
TOLERANCE = {"torch": 0, "jax": 1e-12, "tensorflow": 1e-10}[BACKEND]


class Branching(layers.Layer):
    """Looks at `training`, takes a keyword argument, returns two tensors, and adds a loss."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(FEATURES, use_bias=False)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, shift=None, training=False):
        if not training:
            return x, x
        self.calls.assign_add(1.0)
        y = ops.softsign(self.dense(x))
        self.add_loss(1e-3 * ops.sum(y * y))
        return x + y, y if shift is None else y + shift


class Common(layers.Layer):
    """Multiplies all samples by the same numbers, as many as a micro-batch has samples or more."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        factors = keras.random.uniform((2 * SIZE, 1), seed=self.seeds, dtype=x.dtype)
        return x * ops.sum(factors)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = [layers.Dense(8, activation="softsign") for _ in range(3)]
        self.drop = layers.Dropout(0.2)
        self.norm = layers.BatchNormalization(momentum=0.5)
        self.last = layers.Dense(2)

    def build(self, shape):
        self.call(keras.KerasTensor(shape))

    def call(self, x, training=None):
        x = ops.reshape(x, (-1, LENGTH * FEATURES))
        for layer in self.hidden:
            x = self.drop(layer(x), training=training)
        return self.last(self.norm(x, training=training))


class MaskedLayers(Subclassed):
    """Its layers find the mask with the tensors that they hand on."""

    def __init__(self):
        super().__init__()
        self.parts = [layers.Masking(), layers.LSTM(4, return_sequences=True), layers.Dropout(0.2)]
        self.parts += [layers.GlobalAveragePooling1D(), layers.Dense(2)]

    def call(self, x, training=None):
        for layer in self.parts:
            x = layer(x)
        return x


def functional(body):
    inputs = keras.Input((LENGTH, FEATURES))
    return keras.Model(inputs, layers.Dense(2)(body(inputs)))


def residual(x):
    x = layers.Flatten()(x)
    for seed in (None, 3, None):
        y = layers.Dense(
            x.shape[-1],
            activation="tanh",
            kernel_regularizer="l2",
            activity_regularizer=keras.regularizers.L2(1e-3),
        )(x)
        y = layers.BatchNormalization(momentum=0.5)(y)
        x = Common()(layers.Dropout(0.3, seed=seed)(y)) * 0.3 + x
    return x


def recurrent(x):
    x = layers.LSTM(4, dropout=0.3, recurrent_dropout=0.2, return_sequences=True)(x)
    return layers.Bidirectional(layers.GRU(4, dropout=0.2))(x)


def attention(x):
    for _ in range(2):
        x = layers.MultiHeadAttention(2, 3, dropout=0.3)(x, x) + x
        x = layers.LayerNormalization()(x)
    return layers.GlobalAveragePooling1D()(x)


def masked(x):
    x = layers.Masking()(x)
    x = layers.LSTM(4, return_sequences=True)(x)
    x = layers.Dropout(0.2)(x)
    return layers.GlobalAveragePooling1D()(layers.Dense(4)(x))


def branching(x):
    branch = Branching()  # called twice, with the same weights
    x, shift = branch(x)
    x, y = branch(x, shift=shift)
    return layers.Flatten()(layers.Concatenate()([x, y]))


def nested(x):
    inner = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(6, "tanh"), layers.Dropout(0.2)]
    )
    whole = keras.Sequential([keras.Input((FEATURES,)), inner, layers.Dense(6), inner])
    return whole(layers.Flatten()(layers.Conv1D(2, 3)(x)))


def two_inputs_and_outputs():
    numbers = keras.Input((LENGTH, FEATURES), name="numbers")
    words = keras.Input((LENGTH,), dtype="int32", name="words")
    x = layers.Embedding(7, FEATURES, mask_zero=True)(words) + numbers
    x = layers.Dropout(0.2)(layers.Dense(8, "tanh")(x))
    first = layers.Dense(2, name="first")(layers.GlobalAveragePooling1D()(x))
    second = layers.Dense(2, name="second")(layers.GlobalMaxPooling1D()(x))
    return keras.Model([numbers, words], [first, second])


CASES = {
    "residual": lambda: functional(residual),
    "recurrent": lambda: functional(recurrent),
    "attention": lambda: functional(attention),
    "masked": lambda: functional(masked),
    "branching": lambda: functional(branching),
    "nested": lambda: functional(nested),
    "two inputs and outputs": two_inputs_and_outputs,
    "subclassed": Subclassed,
    "masked layers": MaskedLayers,
}
QUICK = ["masked layers", "branching", "two inputs and outputs"]


def trained(make, rematerialize, loss: Any = "mse", x=None, padding=None, **settings):
    keras.utils.set_random_seed(1)
    model = make()
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2 * BATCH, 2))
    if x is None:
        x = rng.normal(size=(2 * BATCH, LENGTH, FEATURES))
        x[3, 2:] = x[9, 4:] = 0.0
    if isinstance(model, Subclassed):
        model(x)
    elif len(model.inputs) == 2:
        x, y = [x, rng.integers(0, 7, x.shape[:2])], [y, y[:, ::-1]]
    model.compile(keras.optimizers.SGD(0.01, momentum=0.5), loss, **settings)
    ranger.microbatch(model, SIZE, rematerialize=rematerialize, padding=padding)
    # JAX takes long without compilation.
    epochs = 2 if BACKEND == "jax" and settings == MODES["eager"] else EPOCHS
    history = fit(model, x, y, BATCH, epochs=epochs)
    return model, history.history["loss"]


@functools.cache
def keeping_everything(case, mode):
    """Return what `trained` does of a case without rematerialization."""
    return trained(CASES[case], False, **MODES[mode])


def assert_same_training(make, rematerialize, tolerance=TOLERANCE, expected=None, **settings):
    expected, losses = expected or trained(make, False, **settings)
    assert losses[-1] < losses[0] or len(losses) < EPOCHS
    actual, own_losses = trained(make, rematerialize, **settings)
    assert_same_variables(actual, expected, tolerance)
    np.testing.assert_allclose(own_losses, losses, rtol=max(tolerance, 1e-15))
    return actual


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        *first_but({(case, FIRST) for case in QUICK}, [(case, FIRST) for case in CASES]),
        *thorough_but({("branching", "XLA")}, [(case, mode) for case in CASES for mode in OTHERS]),
    ],
)
@pytest.mark.usefixtures("float64")
def test_the_weights_are_those_of_a_backward_pass_that_keeps_everything(case, mode):
    # Keras' attention computes in float32 on JAX.
    tolerance = {"tolerance": 1e-6} if (case, BACKEND) == ("attention", "jax") else {}
    expected = keeping_everything(case, mode)
    model = assert_same_training(CASES[case], 4, **tolerance, expected=expected, **MODES[mode])
    assert "layers' calls again" in model.microbatch_plan.rematerialization


@pytest.mark.parametrize("count", thorough_but([5], [2, 3, 5]))
@pytest.mark.usefixtures("float64")
def test_a_number_of_segments_can_be_given(count):
    expected = keeping_everything("residual", FIRST)
    model = assert_same_training(CASES["residual"], count, expected=expected, **MODES[FIRST])
    assert f"in {count - 1} segments" in model.microbatch_plan.rematerialization


def concordant(y_true, y_pred):
    """Return a number in which all samples of the batch meet."""
    wanted = ops.sign(y_true[:, None, 0] - y_true[None, :, 0])
    return ops.mean(ops.softplus(-wanted * (y_pred[:, None, 0] - y_pred[None, :, 0])))


@first
@pytest.mark.usefixtures("float64")
def test_a_loss_of_the_whole_batch():
    model = assert_same_training(CASES["residual"], 4, loss=concordant, **MODES[FIRST])
    assert "whole batch" in model.microbatch_plan.loss


@first
@pytest.mark.usefixtures("float64")
def test_several_tasks():
    def make():
        return ranger.multitask(two_inputs_and_outputs(), "pcgrad")

    assert_same_training(make, 4, loss=["mse", "mse"], **MODES[FIRST])


@first
@pytest.mark.usefixtures("float64")
def test_trimmed_padding():
    def make():
        words = keras.Input((None,), dtype="int32")
        x = layers.Embedding(7, FEATURES, mask_zero=True)(words)
        x = layers.Dropout(0.2)(layers.GRU(4, return_sequences=True)(x))
        x = layers.GlobalAveragePooling1D()(layers.Dense(4, "tanh")(x))
        return keras.Model(words, layers.Dense(2)(layers.Dense(4, "tanh")(x)))

    rng = np.random.default_rng(0)
    words = rng.integers(1, 7, (2 * BATCH, LENGTH))
    words *= np.arange(LENGTH) < rng.choice([2, LENGTH], (2 * BATCH, 1))
    assert_same_training(make, 3, x=words, padding=0, **MODES[FIRST])
