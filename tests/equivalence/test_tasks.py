"""Each task of the command line ends with the same weights whatever the size of a micro-batch.

Dropout is off, as each micro-batch draws masks of its own. The batch normalization of `mnist` looks
at all samples of a micro-batch, so no equality holds while it does: here it is frozen, and
normalizes by its moving statistics.
"""

import keras
import numpy as np
import pytest
from keras.src.backend.common import dtypes  # noqa: TID251 (see test_microbatch_cases.py)

from tensorflow_ranger import microbatch
from tensorflow_ranger_cli.runs.shuffled_batches import ShuffledBatches, count
from tensorflow_ranger_cli.tasks import registry
from tests.application import slices
from tests.marks import first, thorough_but

UPDATES = 10
SAMPLES = 80  # of an update: a micro-batch of 64, and a rest of 16
LENGTHS = {"brown": 8, "spoken-digits": 12, "spoken-strings": 28}  # the sequences take the time
TOLERANCE = 1e-6 if keras.config.backend() == "torch" else 1e-10


@pytest.fixture
def exact(float64, monkeypatch):
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")


def samples_of(name):
    """Return samples of a task, with short sequences where it has any."""
    length = LENGTHS.get(name)
    (x, y), _ = slices.loaded(name)
    if name == "brown":
        x, y = x[:, :length], y[:, :length]
    elif length is not None:
        short = y[:, 0] <= length
        x, y = x[short, :length], y[short]
    x, y = keras.tree.map_structure(lambda array: array[:SAMPLES], (x, y))
    assert count(x) == SAMPLES
    return x, y


def trained(name, size, x, y):
    """Return the weights before and after `UPDATES` updates."""
    task = registry.find(name)
    model = task.build_model(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0)
    jit_compile = keras.config.backend() == "jax"
    model.compile(optimizer, **{**task.compile_arguments(), "jit_compile": jit_compile})
    microbatch(model, size)
    before = model.get_weights()
    batches = ShuffledBatches(x, y, SAMPLES, seed=0)
    model.fit(batches, shuffle=False, verbose=0, epochs=UPDATES)
    assert int(optimizer.iterations) == UPDATES
    return before, model.get_weights()


@first
@pytest.mark.parametrize("name", thorough_but(["digits"], registry.names()))
def test_micro_batches_end_where_whole_batches_do(name, exact):
    x, y = samples_of(name)
    before, whole = trained(name, SAMPLES, x, y)
    moved = max(np.abs(new - old).max() for new, old in zip(whole, before, strict=True))
    assert moved > 1e-3
    for size in (16, 64):
        _, weights = trained(name, size, x, y)
        for weight, wanted in zip(weights, whole, strict=True):
            assert weight.dtype == "float64"
            np.testing.assert_allclose(weight, wanted, rtol=0, atol=TOLERANCE)
