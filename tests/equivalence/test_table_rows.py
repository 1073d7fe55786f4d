"""Of a table of which a batch looks up some rows these alone are trained, where that is the rule.

SGD and Adagrad leave a row without a gradient as it is. The oracle is plain `fit`, whose gradient
on JAX and PyTorch is an array of the size of the table.
"""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tensorflow_ranger.backend import arrays
from tests.marks import first, first_but, thorough_but
from tests.models import assert_same_weights, beside_the_state, fit

BACKEND = keras.config.backend()
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-10
WORDS, LENGTH, BATCH, SAMPLES = 400, 6, 24, 94  # the last batch has 22
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, WORDS, (SAMPLES, LENGTH)), RNG.normal(size=(SAMPLES, 2))
X[:, :3] //= 30  # rows that are looked up again and again, and padding
ROWS = [True]  # whether the gradient of each table is a list of rows
DENSE = [False]


def table(**settings):
    return layers.Embedding(WORDS, 4, **settings)


def lookup(x):
    return table()(x)


def twice(x):
    own = table()
    return layers.Concatenate()([own(x), own(ops.flip(x, 1)), layers.Embedding(400, 3)(x)])


def masked(x):
    return layers.GRU(5)(table(mask_zero=True)(x))


def dropped(x):
    return layers.Dropout(0.0)(table()(x))


def from_the_end(x):
    return table()(x - WORDS)


def regularized(x):
    return table(embeddings_regularizer="l2")(x)


def constrained(x):
    return table(embeddings_constraint=keras.constraints.MaxNorm(0.05))(x)


def frozen(x):
    return table(trainable=False)(x)


def small(x):
    return layers.Embedding(WORDS // 4, 4)(x // 4)


def tied(x):
    own = layers.ReversibleEmbedding(WORDS, 4)
    return own(layers.Dense(4)(own(x)), reverse=True)


class Penalized(layers.Embedding):
    """Adds a loss that is no regularizer's."""

    def call(self, inputs):
        self.add_loss(ops.sum(ops.square(self.embeddings[:9])))
        return super().call(inputs)


def penalized(x):
    return Penalized(WORDS, 4)(x)


class LookingUp(layers.Layer):
    """A recurrent cell that looks up one row at a time, inside the loop over the time steps."""

    state_size = output_size = 4

    def __init__(self):
        super().__init__()
        self.table = table()

    def build(self, shape):
        self.table.build(())

    def call(self, inputs, states):
        state = states[0] * 0.5 + self.table(ops.cast(inputs[:, 0], "int32"))
        return state, [state]


def in_a_loop(x):
    return layers.RNN(LookingUp())(ops.expand_dims(ops.cast(x, "float32"), 2))


BODIES = {
    "lookup": (lookup, ROWS),
    "twice": (twice, ROWS * 2),
    "masked": (masked, ROWS),
    "dropped": (dropped, ROWS),
    "from the end": (from_the_end, ROWS),
    "regularized": (regularized, DENSE),
    "constrained": (constrained, DENSE),
    "frozen": (frozen, []),
    "small": (small, DENSE),
    "tied": (tied, DENSE),
    "penalized": (penalized, DENSE),
    # JAX cannot take rows out of a loop of a layer's; PyTorch needs not.
    "in a loop": (in_a_loop, ROWS if BACKEND == "torch" else DENSE),
}
OPTIMIZERS = {
    "sgd": (lambda: keras.optimizers.SGD(0.1), ROWS),
    "adagrad": (lambda: keras.optimizers.Adagrad(0.05), ROWS),
    "decay": (lambda: keras.optimizers.SGD(0.1, weight_decay=0.01), DENSE),
    "average": (lambda: keras.optimizers.Adagrad(0.05, use_ema=True), DENSE),
    "clipped": (lambda: keras.optimizers.SGD(0.1, clipnorm=0.02), DENSE),
    "clipped together": (lambda: keras.optimizers.Adagrad(0.05, global_clipnorm=0.02), DENSE),
    "clipped each": (lambda: keras.optimizers.SGD(0.1, clipvalue=0.001), DENSE),
    "scaled": (lambda: keras.optimizers.SGD(0.1, loss_scale_factor=8.0), DENSE),
    "adam": (lambda: keras.optimizers.Adam(0.01), DENSE),
    "subclass": (lambda: Halved(0.1), DENSE),
}


class Halved(keras.optimizers.SGD):
    """An SGD of which nobody knows what it does."""

    def apply(self, grads, trainable_variables=None):
        return super().apply([grad * 0.5 for grad in grads], trainable_variables)


def network(body, optimizer, loss: Any = "mse"):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None if body == "masked" else LENGTH,), dtype="int32")
    x = BODIES[body][0](inputs)
    x = x if body == "masked" else layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile(OPTIMIZERS[optimizer][0](), loss, jit_compile=BACKEND == "jax")
    return model


@pytest.fixture
def lists(monkeypatch):
    """For the tables of each update, whether the gradient was a list of rows."""
    seen, apply = [], arrays.apply

    def look(optimizer, gradients, variables):
        pairs = zip(gradients, variables, strict=True)
        seen.append([is_list(gradient) for gradient, v in pairs if "embedding" in v.path])
        return apply(optimizer, gradients, variables)

    monkeypatch.setattr(arrays, "apply", look)
    return seen


def is_list(gradient):
    return getattr(gradient, "is_sparse", False) or type(gradient).__name__ == "BCOO"


def assert_same_training(build, size=7, **settings):
    plain, ours = build(), build()
    ranger.microbatch(ours, size, **settings)
    for model in (plain, ours):
        fit(model, X, Y, BATCH, epochs=5)
    assert_same_weights(ours, plain, TOLERANCE)


# On TensorFlow tests/equivalence/test_embeddings.py looks at tables.
@pytest.mark.parametrize(
    "optimizer", thorough_but([] if BACKEND == "tensorflow" else ["adagrad"], ["adagrad", "sgd"])
)
@pytest.mark.parametrize("body", BODIES)
def test_a_table_of_any_use(float64, lists, body, optimizer):
    assert_same_training(lambda: network(body, optimizer))
    if BACKEND != "tensorflow":
        assert lists
        assert all(each == BODIES[body][1] for each in lists)


# On TensorFlow plain `fit` fails with these: a list of rows is multiplied by a number.
FAILING = ("scaled", "subclass") if BACKEND == "tensorflow" else ()


@pytest.mark.parametrize(
    "optimizer", [o for o in OPTIMIZERS if o not in ("sgd", "adagrad", *FAILING)]
)
@pytest.mark.thorough
def test_an_optimizer_that_moves_other_rows_has_a_dense_gradient(float64, lists, optimizer):
    assert_same_training(lambda: network("lookup", optimizer))
    if BACKEND != "tensorflow":
        assert all(each == OPTIMIZERS[optimizer][1] for each in lists)


def apart(y_true, y_pred):
    """A loss of the whole batch: one number that is no mean over samples."""
    return ops.sum((y_pred - y_true) ** 2) / ops.sqrt(1.0 + ops.sum(y_pred**2))


@pytest.mark.parametrize("size", [7, BATCH])
def test_a_loss_of_the_whole_batch(float64, lists, size):
    assert_same_training(lambda: network("lookup", "adagrad", apart), size)
    assert BACKEND == "tensorflow" or all(each == ROWS for each in lists)


def test_another_optimizer_is_compiled(float64, lists):
    plain, ours = network("lookup", "adagrad"), network("lookup", "adagrad")
    ranger.microbatch(ours, 7)
    for optimizer in ("adagrad", "adam", "sgd"):
        for model in (plain, ours):
            model.compile(OPTIMIZERS[optimizer][0](), "mse", jit_compile=BACKEND == "jax")
            fit(model, X, Y, BATCH, epochs=2)
    assert_same_weights(ours, plain, TOLERANCE)
    if BACKEND != "tensorflow":
        assert [is_list for is_list, _ in itertools.groupby(lists)] == [ROWS, DENSE, ROWS]


@first
def test_padded_batches(float64):
    words = np.minimum(X + 1, WORDS - 1)
    x = np.where(np.arange(LENGTH) < RNG.choice([2, LENGTH], (SAMPLES, 1)), words, 0)
    plain, ours = network("masked", "adagrad"), network("masked", "adagrad")
    ranger.microbatch(ours, 7, padding=0)
    for model in (plain, ours):
        fit(model, x, Y, BATCH, epochs=5)
    assert_same_weights(ours, plain, TOLERANCE)


@pytest.mark.parametrize("policy", first_but(["mixed_bfloat16"], ["mixed_bfloat16", "bfloat16"]))
def test_a_narrow_dtype(lists, policy):
    def build():
        keras.config.set_dtype_policy(policy)
        try:
            return network("lookup", "adagrad")
        finally:
            keras.config.set_dtype_policy("float32")

    plain, ours = build(), build()
    ranger.microbatch(ours, 7)
    for model in (plain, ours):
        fit(model, X, Y.astype("float32"), BATCH, epochs=5)
    assert_same_weights(ours, plain, 0.02)
    assert BACKEND == "tensorflow" or all(each == ROWS for each in lists)


if BACKEND == "jax":

    @pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
    def test_the_memory_of_an_update_grows_with_the_table_where_it_is_dense(optimizer):
        def needed(rows):
            model = keras.Sequential([keras.Input((LENGTH,)), layers.Embedding(rows, 64)])
            model.compile(OPTIMIZERS[optimizer][0](), "mse", jit_compile=True)
            ranger.microbatch(model, 8)
            y = np.zeros((SAMPLES, LENGTH, 64), "float32")
            return beside_the_state(model, X.astype("float32"), y, 8)

        grown = needed(10_000) - needed(1_000)
        assert grown >= 9_000 * 64 * 4 if optimizer == "adam" else grown == 0


if BACKEND == "torch":
    import torch
    from keras.layers import TorchModuleWrapper

    @pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
    def test_a_sparse_embedding_of_pytorch(optimizer):
        def build(is_sparse):
            keras.utils.set_random_seed(1)
            inputs = keras.Input((LENGTH,), dtype="int32")
            own = torch.nn.Embedding(WORDS, 4, sparse=is_sparse)
            x = TorchModuleWrapper(own, output_shape=(None, LENGTH, 4))(inputs)
            model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
            model.compile(OPTIMIZERS[optimizer][0](), "mse")
            return model

        plain, ours = build(False), ranger.microbatch(build(True), 7)
        for model in (plain, ours):
            fit(model, X, Y.astype("float32"), BATCH, epochs=5)
        assert_same_weights(ours, plain, 1e-5)
