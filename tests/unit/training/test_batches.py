"""Batches that are sparse, ragged or have missing parts train as plain Keras trains them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tensorflow_ranger.training.microbatch import install
from tests.marks import thorough_but
from tests.models import assert_same_weights, data, fit

BACKEND = keras.config.backend()
IS_TENSORFLOW = BACKEND == "tensorflow"


def network(sparse=False, **settings):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,), sparse=sparse), layers.Dense(4, activation="tanh"), layers.Dense(2)]
    )
    model.compile("sgd", "mse", **{"jit_compile": BACKEND == "jax", **settings})
    return model


def sparse_data():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    x, y = data(36)
    x[np.abs(x) < 0.8] = 0
    return scipy_sparse.csr_matrix(x), y


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no sparse tensors on PyTorch")
@pytest.mark.parametrize(
    "loop",
    thorough_but(["device" if BACKEND == "tensorflow" else "host"], ["host", "device"]),
)
def test_sparse_inputs(loop):
    x, y = sparse_data()
    whole = network(sparse=True, jit_compile=False)
    fit(whole, x, y, 12)
    for size in (4, 5, 12):
        parts = network(sparse=True, jit_compile=False)
        fit(install(parts, size, loop=loop), x, y, 12)
        assert_same_weights(parts, whole)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no sparse tensors on PyTorch")
def test_verify_takes_sparse_inputs():
    x, y = sparse_data()
    assert ranger.verify(network(sparse=True, jit_compile=False), (x, y), 5).exact


@pytest.mark.skipif(not IS_TENSORFLOW, reason="tf.data gives TensorFlow's own sparse tensors")
def test_sparse_tensors_of_a_data_set():
    import tensorflow as tf

    x, y = sparse_data()
    dense = tf.convert_to_tensor(x.toarray())

    def batches():
        return tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(dense), y)).batch(12)

    whole, parts = network(sparse=True), ranger.microbatch(network(sparse=True), 5)
    for model in (whole, parts):
        model.fit(batches(), shuffle=False, verbose=0)
    assert_same_weights(parts, whole)


@pytest.mark.skipif(not IS_TENSORFLOW, reason="ragged tensors are TensorFlow's")
def test_ragged_inputs_with_a_loss_that_returns_a_number():
    import tensorflow as tf

    class Ragged(keras.Model):
        def call(self, x):
            return tf.reduce_mean(x, axis=1, keepdims=True)

    lengths = [1 + i % 4 for i in range(24)]
    x = tf.ragged.constant([np.arange(length) + 0.5 for length in lengths], dtype="float32")
    histories = []
    for size in (None, 5):
        model = Ragged()
        model.compile("sgd", lambda y, y_pred: 3, metrics=["mae"], jit_compile=False)
        if size is not None:
            ranger.microbatch(model, size)
        with pytest.warns(UserWarning, match="does not have any trainable weights"):
            histories.append(fit(model, x, np.zeros((24, 1)), 12).history)
    assert histories[0]["loss"] == histories[1]["loss"] == [3.0]
    assert histories[0]["mae"] == pytest.approx(histories[1]["mae"])


def generator():
    x, y = data(24)
    for start in (0, 12):
        yield x[start : start + 12], y[start : start + 12], None


def test_a_generator_without_weights():
    whole, parts = network(), ranger.microbatch(network(), 5)
    for model in (whole, parts):
        model.fit(generator(), shuffle=False, steps_per_epoch=2, verbose=0)
    assert_same_weights(parts, whole)


def test_an_optional_input_that_is_missing():
    class Optional(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, inputs):
            x, more = inputs
            return self.dense(x if more is None else x + more)

    def make():
        keras.utils.set_random_seed(1)
        model = Optional()
        model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
        return model

    x, y = data(24)
    whole, parts = make(), ranger.microbatch(make(), 5)
    for model in (whole, parts):
        fit(model, (x, None), y, 12)
    assert_same_weights(parts, whole)


class Reads(layers.Layer):
    """Asks in Python for the value of what it is given, once training has begun."""

    def __init__(self):
        super().__init__()
        self.reading = False

    def call(self, x):
        return x * 2 if not self.reading or bool(ops.all(ops.equal(x, x))) else x


@pytest.mark.skipif(IS_TENSORFLOW, reason="graphs have no values; eager models are built in one")
@pytest.mark.parametrize("settings", [{"jit_compile": False}, {"run_eagerly": True}])
def test_a_layer_that_needs_concrete_values(settings):
    x, y = data(24)
    models = []
    for size in (None, 5, 12):
        keras.utils.set_random_seed(1)
        reads = Reads()
        model = keras.Sequential([keras.Input((6,)), reads, layers.Dense(2)])
        model.compile("sgd", "mse", **settings)
        begin = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs=None, reads=reads: setattr(
                reads, "reading", True
            )
        )
        if size is not None:
            ranger.microbatch(model, size)
        fit(model, x, y, 12, callbacks=[begin])
        models.append(model)
    assert_same_weights(models[1], models[0])
    assert_same_weights(models[2], models[0])
