"""A model with tables of which rows are looked up trains as in the whole batch.

On TensorFlow their gradient is a list of rows, of which Keras' adaptive optimizers make something
else than of its sum.
"""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tests.marks import thorough_but
from tests.models import assert_same_weights, fit

BACKEND = keras.config.backend()
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-10
WORDS, LENGTH, BATCH, SAMPLES = 30, 6, 24, 94  # the last batch has 22
MODES = {
    "tensorflow": ["graph", "xla", "eager"],
    "jax": ["xla"],
    "torch": ["eager"],
}[BACKEND]
SETTINGS = {
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
    "eager": {"jit_compile": False, "run_eagerly": True},
}
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, WORDS, (SAMPLES, LENGTH)), RNG.normal(size=(SAMPLES, 2))


def lookup(table, x):
    return table(x)


def twice(table, x):
    return layers.Concatenate()([table(x), table(ops.flip(x, 1))])


def masked(table, x):
    return layers.GRU(5)(table(x))


class Tied(layers.Layer):
    """Multiplies by the table, which then has a dense gradient, too."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.table.embeddings))


def tied(table, x):
    return Tied(table)(table(x))


BODIES = {
    "lookup": (lookup, {}),
    "twice": (twice, {}),
    "masked": (masked, {"mask_zero": True}),
    "tied": (tied, {}),
    "regularized": (lookup, {"embeddings_regularizer": "l2"}),
}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, global_clipnorm=0.1, use_ema=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, clipnorm=0.05),
    "adagrad": lambda: keras.optimizers.Adagrad(0.05),
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "wrapped": lambda: ranger.RangerOptimizer(0.01, inner="adam"),
}


def network(body, optimizer, mode, loss="mse"):
    function, settings = BODIES[body]
    keras.utils.set_random_seed(1)
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Flatten()(function(layers.Embedding(WORDS, 8, **settings), inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.0)(x)))
    model.compile(OPTIMIZERS[optimizer](), loss, **SETTINGS[mode])
    return model


def apart(y_true, y_pred):
    """A loss of the whole batch: one number that is no mean over samples."""
    return ops.sum((y_pred - y_true) ** 2) / ops.sqrt(1.0 + ops.sum(y_pred**2))


def assert_same_training(body, optimizer, mode, loss: Any = "mse"):
    plain, ours = (network(body, optimizer, mode, loss) for _ in range(2))
    ranger.microbatch(ours, 7)
    for model in (plain, ours):
        fit(model, X, Y, BATCH, epochs=5)
    assert_same_weights(ours, plain, TOLERANCE)


@pytest.mark.parametrize(
    ("body", "mode"),
    thorough_but(
        {*((body, MODES[0]) for body in BODIES), *(("twice", mode) for mode in MODES)},
        [(body, mode) for body in BODIES for mode in MODES],
    ),
)
def test_a_table_moves_as_in_plain_fit(float64, body, mode):
    assert_same_training(body, "adam", mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if o != "adam"])
@pytest.mark.thorough
def test_an_optimizer_is_handed_what_plain_fit_hands_it(float64, optimizer, mode):
    assert_same_training("lookup", optimizer, mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_of_the_whole_batch(float64, mode):
    assert_same_training("lookup", "adam", mode, loss=apart)


if BACKEND == "tensorflow":

    def test_the_optimizer_is_handed_the_rows_of_the_batch():
        model, seen = network("lookup", "adam", "graph"), []
        apply = model.optimizer.apply

        def look(gradients, variables=None):
            seen.append([type(gradient).__name__ for gradient in gradients])
            return apply(gradients, variables)

        model.optimizer.apply = look
        ranger.microbatch(model, 7)
        fit(model, X.astype("int32"), Y.astype("float32"), BATCH)
        assert seen
        assert {names[0] for names in seen} == {"IndexedSlices"}
        assert {name for names in seen for name in names[1:]} == {"SymbolicTensor"}
