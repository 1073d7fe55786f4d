"""The networks that are timed, each with a batch of random data."""

import keras
import numpy as np

BATCH = 256


def cnn():
    """Return the founding network and a batch of 28x28 images."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    return model, *_batch((28, 28, 1))


def mlp():
    """Return four layers of 1024 units and a batch of vectors."""
    layers = [keras.layers.Dense(1024, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((1024,)), *layers, keras.layers.Dense(10)])
    return model, *_batch((1024,))


def lstm():
    """Return an LSTM of 128 units over 32 steps and a batch of sequences."""
    model = keras.Sequential(
        [keras.Input((32, 64)), keras.layers.LSTM(128), keras.layers.Dense(10)]
    )
    return model, *_batch((32, 64))


PROBLEMS = {"CNN": cnn, "MLP 4x1024": mlp, "LSTM": lstm}


def _batch(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, *shape)).astype("float32")
    return x, rng.integers(0, 10, BATCH).astype("int32")
