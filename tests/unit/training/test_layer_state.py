"""State that layers assign ends as plain Keras leaves it, whatever it is."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tests.marks import first_but
from tests.models import assert_trains_as_plain, data, fit

BACKEND = keras.config.backend()
KEEPS_ALL = BACKEND != "jax"  # plain Keras on JAX drops what a layer assigns to trained weights


class State(layers.Layer):
    """A layer with one variable; `change` says what a call assigns to it."""

    def __init__(self, change, shape=(), dtype="float32", **kwargs):
        super().__init__(**kwargs)
        self._change, self._shape, self._dtype_of_state = change, shape, dtype

    def build(self, input_shape):
        self.state = self.add_weight(
            shape=self._shape, initializer="zeros", trainable=False, dtype=self._dtype_of_state
        )

    def call(self, x, training=False):
        if training:
            self.state.assign(self._change(self.state, x))
        return x


def samples(state, x):
    return state + ops.cast(ops.shape(x)[0], state.dtype)


def calls(state, x):
    return state + 1


def momentum_mean(state, x):
    return 0.9 * state + 0.1 * ops.mean(x, axis=0)


def decayed_sum(state, x):
    return 0.9 * state + ops.sum(x, axis=0)


def running_maximum(state, x):
    return ops.maximum(state, ops.max(x, axis=0))


def last_sample(state, x):
    return x[-1]


def queue(state, x):
    return ops.concatenate([state, x], axis=0)[-20:]


KINDS = {
    "samples": (samples, (), "float32"),
    "integer samples": (samples, (), "int32"),
    "calls": (calls, (), "int32"),
    "mean": (momentum_mean, (6,), "float32"),
    "sum": (decayed_sum, (6,), "float32"),
    "maximum": (running_maximum, (6,), "float32"),
    "last": (last_sample, (6,), "float32"),
    "queue": (queue, (20, 6), "float32"),
}


def model_with(layer, loss="mse"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), layer, layers.Dense(2)])
    model.compile("sgd", loss, jit_compile=BACKEND == "jax")
    return model


@pytest.mark.parametrize("kind", first_but(["calls", "mean", "queue"], KINDS))
def test_state_ends_as_plain_keras_leaves_it(kind):
    change, shape, dtype = KINDS[kind]
    assert_trains_as_plain(
        lambda: model_with(State(change, shape, dtype)), *data(36), sizes=(1, 5, 12), tolerance=1e-5
    )


@pytest.mark.parametrize(
    "settings",
    [{"run_eagerly": True}, *([{"jit_compile": True}] if BACKEND == "tensorflow" else [])],
    ids=str,
)
def test_every_way_of_running(settings):
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(0.1 * ops.sum(x**2))
            return x

    def largest(y_true, y_pred):
        return ops.max(ops.abs(y_true - y_pred))

    def make():
        keras.utils.set_random_seed(1)
        state = [State(queue, (20, 6)), State(decayed_sum, (6,)), State(samples)]
        model = keras.Sequential([keras.Input((6,)), *state, layers.Dense(6), Adds()])
        model.add(layers.Dense(2))
        model.compile("sgd", "mse", metrics=[largest], **settings)
        return model

    assert_trains_as_plain(make, *data(36), sizes=(5,), tolerance=1e-5)


def test_what_depends_on_the_batch_is_told():
    def spread(state, x):
        return state + ops.max(x) - ops.mean(x)

    model = ranger.microbatch(model_with(State(spread, name="odd")), 4)
    with pytest.warns(UserWarning, match=r"state .* of State 'odd' is not what the whole batch"):
        fit(model, *data(12), 12)
    found = ranger.verify(model_with(State(spread, name="odd")), data(12), 4)
    assert not found.exact
    assert max(found.differences.values()) < 1e-5
    assert max(found.state.values()) > 0.01


def test_verify_compares_state_where_gradients_agree():
    found = ranger.verify(model_with(State(queue, (20, 6))), data(12), 4)
    assert found.exact
    assert max(found.state.values()) < 1e-6


def test_a_ring_buffer_and_its_pointer_are_carried_on():
    class Ring(layers.Layer):
        def build(self, input_shape):
            self.keys = self.add_weight(shape=(24, 6), initializer="zeros", trainable=False)
            self.end = self.add_weight(
                shape=(), initializer="zeros", trainable=False, dtype="int32"
            )

        def call(self, x, training=False):
            if training:
                places = (self.end + ops.arange(ops.shape(x)[0], dtype="int32")) % 24
                self.keys.assign(ops.scatter_update(self.keys.value, ops.expand_dims(places, 1), x))
                self.end.assign((self.end + ops.cast(ops.shape(x)[0], "int32")) % 24)
            return x

    assert_trains_as_plain(lambda: model_with(Ring()), *data(36), sizes=(4, 5))


@pytest.mark.parametrize(
    "layer",
    first_but([layers.Dense], [layers.Dense, layers.Conv1D]),
    ids=["dense", "convolution"],
)
def test_spectral_normalization_writes_its_kernel(layer):
    if layer is layers.Dense:
        wrapped, shape = layers.Dense(5, activation="tanh"), (6,)
    else:
        wrapped, shape = layers.Conv1D(3, 2), (3, 2)

    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Reshape(shape),
                layers.SpectralNormalization(type(wrapped).from_config(wrapped.get_config())),
                layers.Flatten(),
                layers.Dense(2),
            ]
        )
        model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=BACKEND == "jax")
        return model

    assert_trains_as_plain(make, *data(36), sizes=(5, 12), tolerance=1e-4)


def test_a_layer_that_divides_its_own_kernel():
    class Scaled(layers.Layer):
        def build(self, input_shape):
            self.kernel = self.add_weight(shape=(6, 4), regularizer="l2")

        def call(self, x, training=False):
            if training:
                self.kernel.assign(self.kernel / ops.sqrt(ops.sum(self.kernel**2)))
            return ops.tanh(x @ self.kernel)

    assert_trains_as_plain(lambda: model_with(Scaled()), *data(36), tolerance=1e-5)


def test_stateful_recurrence_keeps_a_row_for_each_sample():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(36, 3, 2)).astype("float32")

    def make():
        keras.utils.set_random_seed(1)
        inputs = keras.Input(batch_shape=(12, 3, 2))
        # On PyTorch plain Keras cannot train a stateful LSTM or GRU.
        recurrent = layers.SimpleRNN if BACKEND == "torch" else layers.LSTM
        outputs = recurrent(4, stateful=True)(inputs)
        model = keras.Model(inputs, layers.Dense(2)(outputs))
        model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
        return model

    assert_trains_as_plain(make, x, data(36)[1], sizes=(4, 5, 12), tolerance=1e-5)


def test_a_batch_without_a_row_for_each_state_is_refused():
    inputs = keras.Input(batch_shape=(12, 3, 2))
    model = keras.Model(inputs, layers.Dense(2)(layers.GRU(4, stateful=True)(inputs)))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"keeps state for 12 samples, and the batch has 6"):
        fit(ranger.microbatch(model, 4), np.zeros((18, 3, 2)), np.zeros((18, 2)), 12)


def test_a_layer_with_a_row_for_each_sample():
    class Momentum(layers.Layer):
        def build(self, input_shape):
            self.rows = self.add_weight(shape=(12, 6), initializer="zeros", trainable=False)

        def call(self, x, training=False):
            y = 0.5 * self.rows + x
            if training:
                self.rows.assign(y)
            return y

    def make():
        keras.utils.set_random_seed(1)
        inputs = keras.Input(batch_shape=(12, 6))
        model = keras.Model(inputs, layers.Dense(2)(Momentum()(inputs)))
        model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
        return model

    assert_trains_as_plain(make, *data(36), sizes=(4, 5, 12))


@pytest.mark.skipif(not KEEPS_ALL, reason="plain Keras on JAX drops what Keras does not track")
def test_a_variable_that_keras_does_not_track_moves_once_per_batch():
    class Hidden(layers.Layer):
        def __init__(self, states):
            super().__init__()
            self._states = lambda: states

        def call(self, x, training=False):
            (state,) = self._states()
            if training:
                state.assign(state + ops.cast(ops.shape(x)[0], "float32"))
            return x

    counted = []
    for size in (None, 5):
        state = keras.Variable(0.0, trainable=False)
        model = model_with(Hidden([state]))
        fit(model if size is None else ranger.microbatch(model, size), *data(36), 12)
        counted.append(float(state))
    assert counted == [36.0, 36.0]


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's modules are layers on PyTorch alone")
def test_buffers_of_a_torch_module_move_once_per_batch():
    import torch

    x, y = data(36)

    def make():
        keras.utils.set_random_seed(1)
        module: Any = torch.nn.BatchNorm1d(6)
        wrapped = layers.TorchModuleWrapper(module, output_shape=(None, 6))
        model = keras.Sequential([keras.Input((6,)), wrapped, layers.Dense(2)])
        model.compile("sgd", "mse")
        return model, module

    plain, expected = make()
    fit(plain, x, y, 12)
    for size in (12, 4):
        model, module = make()
        fit(ranger.microbatch(model, size), x, y, 12)
        assert int(module.num_batches_tracked) == 3
        np.testing.assert_allclose(module.running_mean, expected.running_mean, atol=1e-6)
        if size == 12:
            np.testing.assert_allclose(module.running_var, expected.running_var, atol=1e-6)
    before = [buffer.clone() for buffer in module.buffers()]
    ranger.verify(model, (x, y), 6)
    for buffer, old in zip(module.buffers(), before, strict=True):
        np.testing.assert_array_equal(buffer, old)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a tf.Variable")
@pytest.mark.parametrize("settings", [{"jit_compile": False}, {"run_eagerly": True}], ids=str)
def test_a_variable_of_tensorflow_moves_once_per_batch(settings):
    import tensorflow as tf

    class Counts(layers.Layer):
        def __init__(self):
            super().__init__()
            self.calls = tf.Variable(tf.constant(0))
            self.samples = tf.Variable(tf.constant(0.0))

        def call(self, x, training=False):
            if training:
                self.calls.assign_add(1)
                self.samples.assign_add(tf.cast(tf.shape(x)[0], "float32"))
            return x

    x, y = data(36)
    for size in (12, 5):
        layer = Counts()
        model = keras.Sequential([keras.Input((6,)), layer, layers.Dense(2)])
        model.compile("sgd", "mse", **settings)
        ranger.verify(model, (x, y), 5)
        assert int(layer.calls) == 0
        fit(ranger.microbatch(model, size), x, y, 12)
        assert int(layer.calls) == 3
        assert float(layer.samples) == 36.0


def test_a_batch_of_one_sample_settles_nothing():
    model = ranger.microbatch(model_with(State(samples)), 5)
    model.train_on_batch(*(array[:1] for array in data(36)))
    fit(model, *data(36), 12)
    assert float(model.layers[0].state) == 37.0
