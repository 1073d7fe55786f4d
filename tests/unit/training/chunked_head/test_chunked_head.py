"""When logits are computed in chunks, what that saves, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers, losses, ops

import tensorflow_ranger as ranger
from tests.marks import first
from tests.models import assert_same_weights, fit, temporaries

BACKEND = keras.config.backend()
LENGTH, WIDTH, SAMPLES, WORDS = 16, 4, 8, 20_000  # of logits 10 MB
only_jax = pytest.mark.skipif(BACKEND != "jax", reason="only XLA on JAX tells what it allocates")


def model_of(head=None, loss=None, length=LENGTH, width=WIDTH, **settings):
    keras.utils.set_random_seed(0)
    words = keras.Input((length,), dtype="int32")
    x = layers.Dense(width, activation="tanh")(layers.Embedding(50, width)(words))
    outputs = (head or layers.Dense(WORDS))(x)
    model = keras.Model(words, outputs)
    settings = {"jit_compile": BACKEND == "jax", **settings}
    loss = loss or losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, **settings)
    return model


def data(samples=SAMPLES, length=LENGTH, words=WORDS):
    rng = np.random.default_rng(0)
    return rng.integers(0, 50, (samples, length)), rng.integers(0, words, (samples, length))


def of_batch(y_true, y_pred):
    return ops.max(y_pred)


def test_large_logits_are_divided_by_themselves():
    expected, model = model_of(), model_of()
    fit(ranger.microbatch(expected, 4, head_chunks=1), *data(), SAMPLES)
    fit(ranger.microbatch(model, 4), *data(), SAMPLES)
    assert expected.microbatch_plan.head is None
    text = "The logits of 4 samples, 5.1 MB, are computed in chunks of 64 rows, 5.1 MB."
    assert text in str(model.microbatch_plan)
    assert_same_weights(model, expected, 1e-5)


def test_small_logits_stay_whole():
    model = model_of(layers.Dense(10))
    fit(ranger.microbatch(model, 4), *data(words=10), SAMPLES)
    assert model.microbatch_plan.head is None


def test_logits_that_are_not_the_largest_stay_whole():
    wide = [layers.Dense(WORDS, "tanh"), layers.Dense(4), layers.Dense(WORDS)]
    model = model_of(keras.Sequential([keras.Input((LENGTH, WIDTH)), *wide]))
    fit(ranger.microbatch(model, 4), *data(), SAMPLES)
    assert model.microbatch_plan.head is None


def test_the_plan_tells_why_large_logits_stay_whole():
    model = model_of(metrics=[of_batch])
    fit(ranger.microbatch(model, 4), *data(), SAMPLES)
    assert "metric 'of_batch'" in model.microbatch_plan.head


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.table, self.head = layers.Embedding(50, WIDTH), layers.Dense(10)

    def call(self, x):
        return self.head(self.table(x))


def subclassed():
    model = Subclassed()
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def with_lora():
    model = model_of(layers.Dense(10))
    model.layers[-1].enable_lora(2)
    return model


def two_outputs():
    words = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(50, WIDTH)(words)
    model = keras.Model(words, [layers.Dense(10)(x), layers.Dense(10)(x)])
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def meeting(y_true, y_pred):
    """Return losses in which the rows of outputs meet."""
    values = ops.mean(y_pred, axis=-1)
    return values - ops.max(values)


def balanced(y_true, y_pred):
    """Return the losses of rows, weighted by how rare their class is."""
    labels = ops.cast(y_true, "int32")
    shares = ops.mean(ops.one_hot(ops.reshape(labels, (-1,)), 10), axis=0)
    values = losses.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
    return values / (0.1 + ops.take(shares, labels))


REFUSED = {
    "no functional or Sequential model": subclassed,
    "'last' is neither Dense": lambda: model_of(
        layers.EinsumDense("btd,dv->btv", (LENGTH, 10), name="last")
    ),
    "has an activity_regularizer": lambda: model_of(layers.Dense(10, activity_regularizer="l2")),
    "has LoRA enabled": with_lora,
    "the model has 2 outputs": two_outputs,
    "returns one number for a batch": lambda: model_of(layers.Dense(10), of_batch),
    "not that of each of them": lambda: model_of(layers.Dense(10), meeting),
    "the metric 'of_batch'": lambda: model_of(layers.Dense(10), metrics=[of_batch]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_must_stay_whole_is_refused(reason):
    model, (x, y) = REFUSED[reason](), data(words=10)
    ranger.microbatch(model, 4, head_chunks=2)
    y = [y, y] if reason == "the model has 2 outputs" else y
    with pytest.raises(ValueError, match=f"head_chunks=2 divides the logits .*{reason}"):
        fit(model, x, y, SAMPLES)


def test_rows_that_meet_only_in_rare_rows_are_found():
    x, y = data(words=10)
    y[:4] = 3  # those that are tried
    model = ranger.microbatch(model_of(layers.Dense(10), balanced), 4, head_chunks=2)
    with pytest.raises(ValueError, match="not that of each of them"):
        fit(model, x, y, SAMPLES)


@pytest.mark.parametrize("value", [0, -1, 2.5, "yes", True])
def test_another_number_of_chunks_is_refused(value):
    with pytest.raises(ValueError, match="head_chunks must be an integer >= 1"):
        ranger.microbatch(model_of(layers.Dense(10)), 4, head_chunks=value)


class Hungry:
    """An activation that finds memory for so many rows and no more."""

    most: int | None = None

    def __call__(self, logits):
        rows = int(np.prod(logits.shape[:-1]))
        if self.most is not None and rows > self.most:
            raise MemoryError(f"no memory for {rows} rows")
        return logits


def hungry_model(x, y, head_chunks=None):
    """Return a built model of which 300 rows of logits fit, and one of which all do."""
    hungry, models = Hungry(), []
    for activation in (hungry, None):
        keras.utils.set_random_seed(0)  # Dense has a seed as soon as it is made
        head = layers.Dense(10, activation)
        model = model_of(head, length=600, run_eagerly=True, jit_compile=False)
        fit(model, x, y, 2)
        models.append(ranger.microbatch(model, 2, head_chunks=head_chunks))
    hungry.most = 300
    return models


@first
def test_where_one_sample_does_not_fit_layers_are_run_again_and_then_logits_divided(caplog):
    x, y = data(2, 600, 10)
    model, expected = hungry_model(x, y)
    fit(model, x, y, 2, epochs=2)
    fit(expected, x, y, 2, epochs=2)
    told = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert [text for text in told if text.endswith("from now on.")] == [
        "the backward pass runs layers again from now on.",
        "logits are computed in chunks from now on.",
    ]
    # Both samples are tried first, and then one, whose chunks have 256 rows.
    assert "chunks of 480 rows" in model.microbatch_plan.head
    assert_same_weights(model, expected, 1e-5)


@first
def test_logits_that_must_stay_whole_and_do_not_fit_are_an_error():
    x, y = data(2, 600, 10)
    model, _ = hungry_model(x, y, head_chunks=1)
    with pytest.raises(MemoryError, match="One sample at a time does not fit the memory"):
        fit(model, x, y, 2)


@only_jax
@pytest.mark.parametrize("is_tied", [False, True])
def test_memory_is_a_fraction_of_the_logits(is_tied):
    def make(chunks):
        model = model_of(width=32, length=256)
        if is_tied:
            words = keras.Input((256,), dtype="int32")
            table = layers.ReversibleEmbedding(WORDS, 32)
            x = layers.Dense(32, activation="tanh")(table(words))
            model = keras.Model(words, table(x, reverse=True))
            model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True))
        return ranger.microbatch(model, 16, head_chunks=chunks)

    x, y = data(16, 256)
    logits = 4 * y.size * WORDS
    whole, own = temporaries(make(1), x, y, 16), temporaries(make(None), x, y, 16)
    assert whole > logits
    assert own < 0.12 * whole
    assert own < 0.3 * logits
