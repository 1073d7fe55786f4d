"""Layers that draw random numbers train as in the whole batch, whatever the micro-batch.

On JAX and TensorFlow the whole batch is plain `fit`. PyTorch has a stream of its own: there the
whole batch is `microbatch` with one micro-batch.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tests.marks import first_but, thorough_but
from tests.models import assert_same_weights, fit

BACKEND = keras.config.backend()
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-10
BATCH, BATCHES, EPOCHS = 24, 4, 5  # 20 updates
LENGTH, FEATURES = 5, 6


class Doubled(layers.Layer):
    """Draws twice from one generator, once for each sample and once for all of them."""

    def __init__(self, seeds):
        super().__init__()
        self.seeds = seeds

    def call(self, x, training=False):
        if not training:
            return x
        own = keras.random.normal(ops.shape(x), dtype=x.dtype, seed=self.seeds)
        common = keras.random.uniform(ops.shape(x)[1:], dtype=x.dtype, seed=self.seeds)
        return x + 0.1 * own * common


def dense(x):
    shared = keras.random.SeedGenerator(1)
    x = layers.Flatten()(x)
    for layer in (
        layers.Dropout(0.3),
        layers.Dense(8, activation="selu"),
        layers.AlphaDropout(0.2, seed=2),
        Doubled(shared),
        layers.GaussianNoise(0.1, seed=3),
        layers.Dense(8, activation="tanh"),
        layers.GaussianDropout(0.2),
        layers.Dropout(0.4, noise_shape=(1, None)),
        Doubled(shared),
    ):
        x = layer(x)
    return x


def recurrent(x):
    x = layers.SpatialDropout1D(0.3)(x)
    x = layers.LSTM(4, dropout=0.3, recurrent_dropout=0.2, return_sequences=True)(x)
    x = layers.TimeDistributed(layers.Dropout(0.3, noise_shape=(None, 1)))(x)
    return layers.GRU(4, dropout=0.2)(x)


def attention(x):
    x = layers.Dense(8)(x)
    x = layers.MultiHeadAttention(2, 4, dropout=0.3)(x, x) + x
    return layers.GlobalAveragePooling1D()(x)


def augmented(x):
    ranges = {"value_range": (-5.0, 5.0)}
    for layer in (
        layers.Reshape((LENGTH, FEATURES, 1)),
        layers.RandomBrightness(0.3, **ranges),  # assigns to its inputs in place on PyTorch
        layers.RandomFlip(),
        layers.RandomContrast(0.3, **ranges),
        layers.RandomTranslation(0.2, 0.2),
        layers.Flatten(),
    ):
        x = layer(x)
    return x


def network(body, **settings):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((LENGTH, FEATURES))
    model = keras.Model(inputs, layers.Dense(2)(body(inputs)))
    model.compile(
        keras.optimizers.Adam(0.01), "mse", **{"jit_compile": BACKEND == "jax"} | settings
    )
    return model


def data():
    rng = np.random.default_rng(0)
    samples = BATCH * BATCHES
    return rng.normal(size=(samples, LENGTH, FEATURES)), rng.normal(size=(samples, 2))


def trained(body, size, **settings):
    """Return a model after 20 updates, with `microbatch` if `size` is not None."""
    model = network(body, **settings)
    if size is not None:
        ranger.microbatch(model, size)
    # JAX takes long without compilation.
    epochs = EPOCHS if model.jit_compile or BACKEND != "jax" else 1
    fit(model, *data(), BATCH, epochs=epochs)
    return model


def whole(body, **settings):
    return trained(body, BATCH if BACKEND == "torch" else None, **settings)


@pytest.mark.parametrize("size", thorough_but([1, 7, BATCH], [1, 7, 16, BATCH]))
def test_the_micro_batch_changes_no_draw_of_dense_layers(float64, once_each, size):
    expected = once_each("dense", lambda: whole(dense))
    assert_same_weights(trained(dense, size), expected, TOLERANCE)


@pytest.mark.parametrize("body", first_but([recurrent], [recurrent, attention, augmented]))
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.thorough), 7])
def test_the_micro_batch_changes_no_draw_of_other_layers(float64, once_each, body, size):
    # Keras does not compile layers of images by XLA.
    settings = {"jit_compile": False} if body is augmented else {}
    expected = once_each(body.__name__, lambda: whole(body, **settings))
    assert_same_weights(trained(body, size, **settings), expected, TOLERANCE)


@pytest.fixture(scope="module")
def once_each():
    """A function that makes a thing once for each name."""
    made = {}

    def make_once(name, make):
        if name not in made:
            made[name] = make()
        return made[name]

    return make_once


def test_a_loss_computed_once_sees_the_draws_of_plain_fit(float64, once_each):
    def made(size, loss=None):
        model = network(dense)
        if size is not None:
            ranger.microbatch(model, size, loss=loss)
        fit(model, *data(), BATCH, epochs=EPOCHS)
        return model

    expected = once_each("dense", lambda: whole(dense))
    assert_same_weights(made(7, "whole"), expected, TOLERANCE)


class Penalty(layers.Layer):
    """Adds a loss that is a sum over samples."""

    def call(self, x):
        self.add_loss(1e-2 * ops.sum(x * x))
        return x


def penalized(x):
    return layers.Dropout(0.3)(Penalty()(layers.Dense(8)(layers.Flatten()(x))))


@pytest.mark.usefixtures("float64")
def test_a_summed_loss_of_a_layer_beside_draws_is_that_of_the_whole_batch():
    assert_same_weights(trained(penalized, 7), whole(penalized), TOLERANCE)
