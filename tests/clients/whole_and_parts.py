"""Trains a client's model whole and in micro-batches, and compares where the two end."""

import keras
import numpy as np

from tensorflow_ranger import microbatch

# Rounding in the operations that Keras computes in float32 even where floatx is float64. The update
# of a micro-batch left out, weighed wrongly or counted twice is 1e-3 and more.
TOLERANCE = 1e-6

# XLA on TensorFlow takes a minute to compile what trains for a second.
COMPILE = {"jit_compile": keras.config.backend() == "jax"}
SAMPLES = 14


def built(build):
    """Return ``build()`` with the same initial weights at every call."""
    keras.utils.set_random_seed(1)
    return build()


def fit(model, data, batch_size=7, epochs=3):
    """Call `fit` on the keyword arguments `data`, in the order of the samples; return its logs."""
    settings = {"shuffle": False, "verbose": 0, "batch_size": batch_size, "epochs": epochs}
    return model.fit(**settings, **data).history


def assert_parts_equal_whole(build, data, size=3, **settings):
    """Fail unless micro-batches of `size` samples lead to the weights and logs of whole batches.

    Args:
        build: Function without arguments that returns a built and compiled model.
        data: Keyword arguments of `fit`: arrays with `SAMPLES` samples.
        size: Samples per micro-batch. The default leaves a remainder.
        settings: `batch_size` and `epochs`.
    """
    whole, parts = built(build), built(build)
    start = flat(whole.get_weights())
    np.testing.assert_array_equal(flat(parts.get_weights()), start)
    expected = fit(whole, data, **settings)
    logs = fit(microbatch(parts, size), data, **settings)
    assert parts.microbatch_plan.chosen == size
    assert_same_path(parts.get_weights(), whole.get_weights(), start)
    for name, values in expected.items():
        np.testing.assert_allclose(logs[name], values, rtol=TOLERANCE, err_msg=name)


def assert_same_path(actual, expected, start):
    """Fail unless two trainings ended in the same weights, relative to how far they went."""
    actual, expected, start = flat(actual), flat(expected), flat(start)
    moved = np.linalg.norm(expected - start)
    assert moved > 0
    difference = np.linalg.norm(actual - expected) / moved
    assert difference < TOLERANCE, f"{difference:.2e} of the way apart"


def flat(weights):
    """Return the arrays `weights` as one vector of float64."""
    return np.concatenate([np.ravel(weight).astype("float64") for weight in weights])


def freeze_batch_normalization(model):
    """Let `model` normalize by its moving statistics, which no sample shares with its batch."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
