"""Data made up for a model."""

import keras
import numpy as np
import pytest
from keras import layers

from tensorflow_ranger_cli.commands.random_batch import random_batch
from tensorflow_ranger_cli.errors import CommandError, UsageError

SPARSE = "sparse_categorical_crossentropy"


def two_outputs(as_dict=False):
    """Return a model of tokens of free length and of numbers, with five classes a token."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    numbers = keras.Input((2,), name="numbers")
    embedded = layers.Embedding(7, 3)(tokens)
    classes = layers.Dense(5, name="classes")(embedded)
    value = layers.Dense(1, name="value")(numbers)
    if as_dict:
        return keras.Model(
            {"tokens": tokens, "numbers": numbers}, {"by_token": classes, "mean": value}
        )
    return keras.Model([tokens, numbers], [classes, value])


def one_input(**keywords):
    return keras.Sequential([keras.Input(**keywords), layers.Flatten(), layers.Dense(4)])


def assert_token_batch(tokens, numbers, classes, value):
    assert tokens.shape == (64, 6)
    assert tokens.dtype == "int32"
    assert set(tokens.ravel()) == {1, 2, 3, 4, 5, 6}  # 0 may stand for a masked token
    assert numbers.shape == (64, 2)
    assert numbers.dtype == "float32"
    assert classes.shape == (64, 6)
    assert set(classes.ravel()) == {0, 1, 2, 3, 4}
    assert value.shape == (64, 1)
    assert value.dtype == "float32"


@pytest.mark.parametrize(
    "loss", [[SPARSE, "mse"], {"classes": SPARSE, "value": keras.losses.MeanSquaredError()}]
)
def test_several_inputs_and_outputs(loss):
    model = two_outputs()
    model.compile("sgd", loss)
    x, y = random_batch(model, 64, length=6)
    assert_token_batch(*x, *y)
    model.fit(x, y, batch_size=64, verbose=0)


def test_inputs_and_outputs_by_name():
    model = two_outputs(as_dict=True)
    model.compile("sgd", {"by_token": SPARSE, "mean": "mse"})
    x, y = random_batch(model, 64, length=6)
    assert_token_batch(x["tokens"], x["numbers"], y["by_token"], y["mean"])
    model.fit(x, y, batch_size=64, verbose=0)


@pytest.mark.parametrize(
    "loss",
    [
        SPARSE,
        "SparseCategoricalCrossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ],
    ids=["name", "name of class", "function", "instance"],
)
def test_a_loss_on_classes_is_known_in_every_form(loss):
    model = one_input(shape=(3,))
    model.compile("sgd", loss)
    _, y = random_batch(model, 100)
    assert y.shape == (100,)
    assert set(y) == {0, 1, 2, 3}


@pytest.mark.parametrize("loss", ["mse", "categorical_crossentropy", keras.losses.Huber()])
def test_other_targets_are_like_the_outputs(loss):
    model = one_input(shape=(3,))
    model.compile("sgd", loss)
    _, y = random_batch(model, 8)
    assert y.shape == (8, 4)
    assert len(np.unique(y)) == 32


def test_booleans_and_integers_without_an_embedding():
    model = one_input(shape=(3,), dtype="bool")
    model.compile("sgd", "mse")
    assert random_batch(model, 8)[0].dtype == "bool"
    model = one_input(shape=(3,), dtype="uint8")
    model.compile("sgd", "mse")
    x, _ = random_batch(model, 8)
    assert x.dtype == "uint8"
    assert (x == 1).all()


def test_a_model_without_compiled_losses_needs_no_targets():
    model = one_input(shape=(3,))
    model.compile("sgd")
    (x,) = random_batch(model, 8)
    assert x.shape == (8, 3)


def test_an_open_shape_needs_a_length():
    with pytest.raises(UsageError, match=r"got tokens \(None, None\).*--length"):
        random_batch(two_outputs(), 8)


def test_a_length_without_use_is_named():
    with pytest.raises(UsageError, match="got 6, and the model has none"):
        random_batch(one_input(shape=(3,)), 8, length=6)


def test_inputs_that_are_no_numbers_are_named():
    model = keras.Model(*[keras.Input((1,), dtype="string", name="words")] * 2)
    with pytest.raises(CommandError, match="got words of string"):
        random_batch(model, 8)


def test_a_model_that_does_not_say_its_inputs_is_named():
    class Mine(keras.Model):
        pass

    with pytest.raises(CommandError, match="got Mine, a subclass"):
        random_batch(Mine(), 8)
