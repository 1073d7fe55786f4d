"""Recommenders made of keras-rs' layers."""

import keras
import keras_rs
import numpy as np
import pytest

from tensorflow_ranger import verify
from tests.clients.whole_and_parts import COMPILE, SAMPLES, assert_parts_equal_whole, built

pytestmark = pytest.mark.usefixtures("float64")

IDENTIFIERS = 10
RANDOM = np.random.default_rng(0)
USERS, ITEMS = RANDOM.integers(0, IDENTIFIERS, size=(2, SAMPLES))
CLICKS = {
    "x": {"user": USERS, "item": ITEMS},
    "y": RANDOM.integers(0, 2, size=(SAMPLES, 1)),
    "sample_weight": RANDOM.uniform(0.5, 2, size=SAMPLES),
}


def towers():
    inputs = {name: keras.Input((), name=name, dtype="int32") for name in ("user", "item")}
    embedded = [keras.layers.Embedding(IDENTIFIERS, 4)(x) for x in inputs.values()]
    return inputs, embedded


def deep_and_cross_network():
    inputs, embedded = towers()
    x = first = keras.layers.Concatenate()(embedded)
    for _ in range(2):
        x = keras_rs.layers.FeatureCross(projection_dim=3)(first, x)
    x = keras.layers.Dense(8, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    model.compile(
        keras.optimizers.SGD(0.5, momentum=0.9),
        loss="binary_crossentropy",
        weighted_metrics=["accuracy"],
        **COMPILE,
    )
    return model


def test_deep_and_cross_network():
    assert_parts_equal_whole(deep_and_cross_network, CLICKS)


@keras.saving.register_keras_serializable("tests")
class AgainstTheBatch(keras.layers.Layer):
    """Logits of each user for the batch's items; an item met twice is no negative of itself."""

    def __init__(self):
        super().__init__()
        self.remove_accidental_hits = keras_rs.layers.RemoveAccidentalHits()

    def call(self, user, item, identifiers):
        logits = keras.ops.matmul(user, keras.ops.transpose(item))
        labels = keras.ops.eye(keras.ops.shape(logits)[0], dtype=logits.dtype)
        logits = self.remove_accidental_hits(logits, labels, identifiers)
        self.add_loss(
            keras.ops.mean(keras.losses.categorical_crossentropy(labels, logits, from_logits=True))
        )
        return keras.ops.sum(user * item, axis=-1, keepdims=True)


def in_batch_retrieval():
    inputs, (user, item) = towers()
    model = keras.Model(inputs, AgainstTheBatch()(user, item, inputs["item"]))
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), **COMPILE)
    return model


def test_retrieval_among_the_batch_whose_batch_is_one_micro_batch():
    with pytest.warns(UserWarning, match="a loss added by layer"):
        assert_parts_equal_whole(in_batch_retrieval, {"x": CLICKS["x"]}, size=7)


def test_verify_says_that_retrieval_among_the_batch_needs_the_batch():
    result = verify(built(in_batch_retrieval), (CLICKS["x"],), 3)
    assert not result.exact
    assert result.reasons
