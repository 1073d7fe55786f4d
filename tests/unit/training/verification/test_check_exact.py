"""check_exact: passes what is exact, fails with the cause what is not, and leaves no trace."""

import keras
import numpy as np
import pytest
from keras import layers

import tensorflow_ranger as ranger
from tensorflow_ranger.accumulation.batch_buffer import BatchBuffer
from tensorflow_ranger.backend import arrays
from tensorflow_ranger.training.layer_state import LayerState
from tensorflow_ranger.training.verification import check_exact as module
from tests.marks import first, first_but, thorough_but
from tests.models import data, fit, network

check_exact = ranger.testing.check_exact
BACKEND = keras.config.backend()
ON_JAX = BACKEND == "jax"


def attention():
    """Return a model with dropout and a bias without a gradient, and tokens for it."""
    keras.utils.set_random_seed(1)
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4)(tokens)
    x = layers.MultiHeadAttention(1, 4, name="attention")(x, x)
    x = layers.Dropout(0.3)(layers.LayerNormalization()(x))
    model = keras.Model(tokens, layers.Dense(7)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=ON_JAX)
    tokens = np.random.default_rng(0).integers(1, 7, (12, 5))
    return model, (tokens, np.roll(tokens, 1, axis=1))


def masked():
    """Return a model of padded sequences, trained with `padding`, and weighted samples."""
    keras.utils.set_random_seed(1)
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(tokens)
    model = keras.Model(tokens, layers.Dense(2)(layers.LSTM(3, return_sequences=True)(x)))
    model.compile("rmsprop", keras.losses.MeanAbsoluteError(), jit_compile=ON_JAX)
    ranger.microbatch(model, 3, padding=0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 7, (10, 6))
    tokens[np.arange(6) >= rng.integers(1, 7, (10, 1))] = 0
    return model, (tokens, rng.normal(size=(10, 6, 2)), rng.uniform(0.5, 2, size=(10, 6)))


def layers_again():
    """Return a model that runs layers again in the backward pass, and a batch."""
    model = network(keras.optimizers.SGD(0.1, momentum=0.9))
    return ranger.microbatch(model, 4, rematerialize=2), data(12)


def recurrent():
    """Return a model whose state Keras does not track, and sequences for it."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(batch_shape=(12, 3, 2))
    outputs = layers.Dense(2)(layers.SimpleRNN(3, stateful=True)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", jit_compile=ON_JAX)
    return model, (np.random.default_rng(0).normal(size=(12, 3, 2)), data(12)[1])


def normalized(loss="mse"):
    """Return a model with batch statistics, and a batch."""
    keras.utils.set_random_seed(1)
    stack = [keras.Input((6,)), layers.Dense(5, name="hidden"), layers.BatchNormalization(name="n")]
    model = keras.Sequential([*stack, layers.Dense(2, name="last")])
    model.compile("sgd", loss, jit_compile=ON_JAX)
    return model, data(12)


@pytest.mark.parametrize(
    "make",
    [
        *first_but([recurrent], [attention, recurrent]),
        *thorough_but([], [masked, layers_again]),
    ],
)
def test_passes_what_is_exact(make):
    model, batch = make()
    check_exact(model, batch, sizes=[4 if make is layers_again else 5])


@first
def test_one_half_and_a_size_with_a_remainder_are_checked(monkeypatch):
    sizes = []
    monkeypatch.setattr(module, "microbatch", lambda model, size, **options: sizes.append(size))
    check_exact(network("adam"), data(12))
    assert sizes == [None, 1, 5, 6]


def test_a_whole_batch_loss_passes():
    def spread(y, y_pred):
        return keras.ops.var(y_pred - y)

    check_exact(network("sgd", spread), data(12), sizes=[5])


def test_fails_with_the_layer_that_differs():
    model, batch = normalized()
    with pytest.raises(AssertionError) as caught:
        check_exact(model, batch, sizes=[5])
    message = str(caught.value)
    first_line, head, *rows = message.splitlines()
    assert first_line == (
        f"Micro-batches do not train the model '{model.name}' as the whole batch of 12 samples "
        "does (rtol 3.5e-04)."
    )
    assert head.split() == ["compared", "variable", "difference", "size"]
    compared = [row.split()[:2] for row in rows if not row.startswith("-")]
    assert ["gradient", f"{model.layers[0].path}/kernel"] in compared
    assert ["weights", f"{model.layers[0].path}/kernel"] in compared
    assert [name for name, _ in compared] == sorted(
        [name for name, _ in compared], key=["gradient", "weights", "state", "optimizer"].index
    )
    assert f"- BatchNormalization '{model.name}/n' normalized each micro-batch" in message
    assert "No reason was found" not in message


def scaled_by(factor):
    def close(self, totals):
        return CLOSE(self, [total * factor for total in totals])

    return close


CLOSE = BatchBuffer.close


@first
@pytest.mark.parametrize("optimizer", thorough_but(["sgd"], ["sgd", "adagrad"]))
def test_fails_if_updates_differ_by_a_thousandth(optimizer, monkeypatch):
    model, batch = network(optimizer), data(12)
    check_exact(model, batch, sizes=[5])
    monkeypatch.setattr(BatchBuffer, "close", scaled_by(1.002))
    with pytest.raises(AssertionError, match=r"(?s)weights .*No reason was found"):
        check_exact(model, batch, sizes=[5])
    check_exact(model, batch, sizes=[5], rtol=0.01)


@first
def test_fails_if_only_the_optimizer_state_differs(monkeypatch):
    model = network("adam")  # whose updates are those of a gradient of any length
    monkeypatch.setattr(BatchBuffer, "close", scaled_by(1.002))
    with pytest.raises(AssertionError) as caught:
        check_exact(model, data(12), sizes=[5])
    _, _, *rows, _ = str(caught.value).splitlines()
    assert {row.split()[0] for row in rows} == {"optimizer"}


@first
def test_fails_if_only_a_layer_s_state_differs(monkeypatch):
    class Counting(layers.Layer):
        def build(self, shape):
            self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

        def call(self, x):
            self.seen.assign_add(keras.ops.cast(keras.ops.shape(x)[0], self.seen.dtype))
            return x

    model = keras.Sequential([keras.Input((6,)), Counting(), layers.Dense(2)])
    model.compile("sgd", "mse", jit_compile=ON_JAX)
    check_exact(model, data(12), sizes=[5])
    monkeypatch.setattr(LayerState, "assign", lambda self, totals, samples: None)
    with pytest.raises(AssertionError) as caught:
        check_exact(model, data(12), sizes=[5])
    _, _, row, *_ = str(caught.value).splitlines()
    assert row.split()[0] == "state"
    assert "/seen" in row


@pytest.mark.skipif(BACKEND == "torch", reason="rounds through float32")
def test_is_finer_in_float64(float64, monkeypatch):
    x, y = (array.astype("float64") for array in data(12))
    model = network("sgd", keras.losses.MeanSquaredError())
    check_exact(model, (x, y), sizes=[5])
    monkeypatch.setattr(BatchBuffer, "close", scaled_by(1 + 1e-7))
    with pytest.raises(AssertionError, match=r"1\.5e-08"):
        check_exact(model, (x, y), sizes=[5])


@pytest.mark.parametrize("size", thorough_but([4], [None, 4]))
def test_leaves_model_optimizer_metrics_and_seeds_as_they_were(size):
    def trained():
        keras.utils.set_random_seed(1)
        stack = [keras.Input((6,)), layers.Dense(5), layers.Dropout(0.5), layers.Dense(2)]
        model = keras.Sequential(stack)
        settings = {"metrics": ["mae"], "jit_compile": ON_JAX}
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **settings)
        if size is not None:
            ranger.microbatch(model, size)
        fit(model, x, y, 12)
        return model

    x, y = data(24)
    model, twin = trained(), trained()
    held = dict(vars(model))
    values = [np.array(v) for v in (*model.variables, *model.metrics_variables)]
    slots = [np.array(v) for v in model.optimizer.variables]
    states = arrays.random_state()
    check_exact(model, (x, y), sizes=[5])
    assert vars(model).keys() == held.keys()
    assert all(vars(model)[name] is value for name, value in held.items())
    for old, v in zip(values, (*model.variables, *model.metrics_variables), strict=True):
        np.testing.assert_array_equal(v, old)
    for old, v in zip(slots, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(v, old)
    assert arrays.random_state() == states
    histories = []
    for each in (model, twin):
        keras.utils.set_random_seed(2)  # PyTorch's dropout may draw from its own generator
        histories.append(fit(each, x, y, 12).history)
    assert histories[0] == histories[1]
    for one, other in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@first
def test_a_failure_leaves_the_model_as_it_was_too():
    model, batch = normalized()
    before = model.get_weights()
    with pytest.raises(AssertionError):
        check_exact(model, batch, sizes=[5])
    for old, value in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, old)
    assert not model.optimizer.built
    assert not ranger.verify(model, batch, 5).exact
    assert "make_train_function" not in vars(model)


@first
@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(1, [1]), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (12, [1, 5, 6]), (16, [1, 3, 8])],
)
def test_sizes_are_one_half_and_one_with_a_remainder(samples, sizes):
    assert module._sizes(None, samples) == sizes


@first
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [0]}, "sizes must be an integer >= 1: got 0"),
        ({"sizes": []}, "sizes must hold at least one size"),
        ({"sizes": [2.5]}, "sizes must be an integer >= 1: got 2.5"),
        ({"sizes": 4}, "sizes must hold integers"),
        ({"rtol": 0}, "rtol must be a number > 0: got 0"),
        ({"rtol": "tight"}, "rtol must be a number > 0: got 'tight'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_exact(network("sgd"), data(6), **arguments)


@first
def test_what_cannot_be_compared_is_refused():
    with pytest.raises(TypeError, match=r"check_exact needs a keras\.Model .*: got Dense"):
        check_exact(layers.Dense(2), data(6))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="check_exact needs a model that knows its loss"):
        check_exact(keras.Sequential([keras.Input((6,)), layers.Dense(2)]), data(6))
    with pytest.raises(ValueError, match="leading axes of one size"):
        check_exact(network("sgd"), (data(6)[0], data(5)[1]))
