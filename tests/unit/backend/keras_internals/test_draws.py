"""Contract: Keras' layers draw random numbers where `keras_internals` answers them."""

import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.keras_internals import draws as seam
from tensorflow_ranger.backend.keras_internals.draws import PLACED

SHAPE = (4, 3)
CALLS = {
    "dropout": lambda seed: keras.random.dropout(ops.ones(SHAPE), 0.5, seed=seed),
    "normal": lambda seed: keras.random.normal(SHAPE, seed=seed),
    "randint": lambda seed: keras.random.randint(SHAPE, 0, 9, seed=seed),
    "truncated_normal": lambda seed: keras.random.truncated_normal(SHAPE, seed=seed),
    "uniform": lambda seed: keras.random.uniform(SHAPE, seed=seed),
}
OTHERS = {
    "binomial": lambda seed: keras.random.binomial(SHAPE, 3.0, 0.5, seed=seed),
    "categorical": lambda seed: keras.random.categorical(ops.ones(SHAPE), 2, seed=seed),
    "gamma": lambda seed: keras.random.gamma(SHAPE, 2.0, seed=seed),
    "shuffle": lambda seed: keras.random.shuffle(ops.ones(SHAPE), seed=seed),
}


class Recorder:
    """Answers as Keras would, and records what it was asked for."""

    def __init__(self):
        self.names, self.seeds = [], []

    def draw(self, name, function, arguments):
        self.names.append((name, set(arguments)))
        return function(**arguments)

    def next_seed(self, generator, function):
        self.seeds.append(generator)
        return function()


@pytest.mark.parametrize("name", PLACED)
def test_a_function_asks_with_all_its_arguments(name):
    recorder, seed = Recorder(), keras.random.SeedGenerator(1)
    with keras_internals.drawing_by(recorder):
        found = CALLS[name](seed)
    ((asked, arguments),) = recorder.names
    assert asked == name
    assert (
        arguments
        == {
            "dropout": {"inputs", "rate", "noise_shape", "seed"},
            "normal": {"shape", "mean", "stddev", "dtype", "seed"},
            "randint": {"shape", "minval", "maxval", "dtype", "seed"},
            "truncated_normal": {"shape", "mean", "stddev", "dtype", "seed"},
            "uniform": {"shape", "minval", "maxval", "dtype", "seed"},
        }[name]
    )
    expected = CALLS[name](keras.random.SeedGenerator(1))
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (found, expected)))


@pytest.mark.parametrize("name", OTHERS)
def test_another_function_asks_for_its_seed(name):
    recorder, seed = Recorder(), keras.random.SeedGenerator(1)
    with keras_internals.drawing_by(recorder):
        OTHERS[name](seed)
    assert recorder.seeds == [seed]


def test_layers_ask():
    recorder, x = Recorder(), ops.ones((2, 4, 3))
    drawing = {
        "dropout": layers.Dropout(0.5),
        "normal": layers.GaussianNoise(0.5),
        "uniform": layers.AlphaDropout(0.5),
    }
    recurrent = layers.LSTM(2, dropout=0.5, recurrent_dropout=0.5)
    recurrent.build(x.shape)
    with keras_internals.drawing_by(recorder):
        for layer in drawing.values():
            layer(x, training=True)
        recurrent(x, training=True)
    names = [name for name, _ in recorder.names]
    assert names[:3] == [*drawing]
    assert len(names) > 4
    assert {*names[3:]} == {"dropout"}


def test_keras_draws_by_itself_after_the_last_scope_and_in_other_threads():
    recorder, own = Recorder(), [getattr(seam.keras_backend.random, name) for name in PLACED]
    generator = keras.random.SeedGenerator.next
    with keras_internals.drawing_by(recorder), keras_internals.drawing_by(recorder):
        thread = threading.Thread(target=lambda: keras.random.normal((2,), seed=1))
        thread.start()
        thread.join()
        with pytest.raises(ZeroDivisionError), keras_internals.drawing_by(recorder):
            raise ZeroDivisionError
    assert not recorder.names
    assert [getattr(seam.keras_backend.random, name) for name in PLACED] == own
    assert keras.random.SeedGenerator.next is generator


def test_a_seed_may_be_followed_without_being_moved():
    seed = keras.random.SeedGenerator(3)
    with keras_internals.drawing_by(None, lambda generator: generator.state.value + 4):
        found = keras_internals.drawn_seed(seed)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), [7, 4])
    np.testing.assert_array_equal(ops.convert_to_numpy(seed.state), [3, 0])


def test_a_drawn_seed_moves_its_generator_on():
    seed = keras.random.SeedGenerator(3)
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_internals.drawn_seed(seed)), [3, 0])
    np.testing.assert_array_equal(ops.convert_to_numpy(seed.state), [3, 1])
    np.testing.assert_array_equal(ops.convert_to_numpy(keras_internals.drawn_seed(5)), [5, 0])


def test_the_seeds_of_a_model_are_those_of_all_its_layers():
    class Holds(layers.Layer):
        def __init__(self):
            super().__init__()
            self.own = keras.random.SeedGenerator(1)
            self.inner = [layers.Dropout(0.5, seed=2), layers.Activation("relu")]

        def call(self, x):
            return self.inner[1](self.inner[0](x))

    shared = Holds()
    model = keras.Sequential([keras.Input((2,)), shared, shared])
    expected = {id(shared.own.state), id(shared.inner[0].seed_generator.state)}
    assert {id(v) for v in keras_internals.seeds_of(model)} == expected


if keras.config.backend() == "torch":

    def test_the_drawing_device_is_that_of_the_scope():
        assert keras_internals.drawing_device() == "cpu"
        with keras.device("meta"):
            assert keras_internals.drawing_device() == "meta"
