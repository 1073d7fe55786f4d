"""A linear model whose gradients' norms a NumPy twin knows, and how they are compared."""

import keras
import numpy as np
from keras import layers

import tensorflow_ranger as ranger
from tests.models import data, fit
from tests.references import gradient_norms as reference

BACKEND = keras.config.backend()
RATE = 0.1
BATCH = 16
NAMES = ["gradient_norm", "microbatch_gradient_norm"]
CLIPPED = ["clipped_updates", "clipped_fraction"]
# Of 12 updates each shortens some and leaves others alone.
CLIPS = [{}, {"clipnorm": 1.8}, {"global_clipnorm": 2.0}, {"clipvalue": 0.7}]


def linear(optimizer, **settings):
    """Return a linear model of the twin's weights."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    model.set_weights(reference.weights())
    model.compile(optimizer, "mse", **{"jit_compile": False, **settings})
    return model


def train(model, epochs=3, batch_size=BATCH, **settings):
    x, y = data()
    callbacks = [ranger.callbacks.GradientNorm()]
    return fit(model, x, y, batch_size, epochs, callbacks=callbacks, **settings).history


def assert_logged(history, expected, names=(*NAMES, *CLIPPED), tolerance=1e-4):
    for name in names:
        np.testing.assert_allclose(history[name], expected[name], rtol=tolerance, err_msg=name)
