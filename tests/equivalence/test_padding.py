"""Micro-batches that are trimmed to their longest sample train as plain `fit` on the padded batch.

Where layers draw random numbers, PyTorch has a stream of its own: there the whole batch is
`microbatch` with one micro-batch.
"""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tests.losses import neighbours, of_tags
from tests.marks import first, first_but, thorough_but
from tests.models import assert_same_weights, fit

BACKEND = keras.config.backend()
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-10
STEPS, WORDS, SAMPLES, BATCH = 16, 20, 38, 20  # the last batch has 18
EPOCHS = 10  # 20 updates
RNG = np.random.default_rng(4)
# Each shape of a micro-batch takes seconds to compile. Of these lengths there are few: 5 samples of
# 16 and of 8 steps, and the last 3 of a batch.
LENGTHS = np.concatenate([[STEPS, 1], RNG.choice([7, 8, 15, 16], SAMPLES - 2)])
REAL = np.arange(STEPS) < LENGTHS[:, None]
X = RNG.integers(1, WORDS, (SAMPLES, STEPS)) * REAL
Y = RNG.normal(size=(SAMPLES, 2))
TAGS = RNG.integers(0, 3, (SAMPLES, STEPS))
OTHER_STEPS = 9
OTHER = RNG.integers(1, WORDS, (SAMPLES, OTHER_STEPS)) * (
    np.arange(OTHER_STEPS) < RNG.integers(1, OTHER_STEPS + 1, SAMPLES)[:, None]
)
FRAMES = RNG.normal(size=(SAMPLES, STEPS, 3)) * REAL[..., None]
LABELS = np.concatenate([LENGTHS[:, None], np.minimum(X[:, :1] % 3 + 1, 3)], axis=1)


def embedded(x):
    return layers.Embedding(WORDS, 6, mask_zero=True)(x)


def words():
    return keras.Input((None,), dtype="int32")


def sequence_model(body):
    """Return a function that makes a model of a number per sample from vectors of words."""

    def make():
        x = words()
        return keras.Model(x, layers.Dense(2)(body(embedded(x))))

    return make


def attention(x):
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3)(x, x)])
    return layers.GlobalAveragePooling1D()(x)


def tagger():
    x = words()
    return keras.Model(x, layers.Dense(3)(layers.GRU(5, return_sequences=True)(embedded(x))))


def two_outputs():
    x = words()
    h = layers.GRU(4, return_sequences=True)(embedded(x))
    return keras.Model(x, [layers.Dense(3)(h), layers.Dense(2)(layers.GlobalAveragePooling1D()(h))])


def two_inputs():
    x, other = words(), words()
    h = [layers.GRU(4)(embedded(x)), layers.LSTM(4)(embedded(other))]
    return keras.Model([x, other], layers.Dense(2)(layers.Concatenate()(h)))


def frames():
    x = keras.Input((None, 3))
    h = layers.GRU(4, return_sequences=True)(x)
    return keras.Model(x, layers.Dense(4)(h))


class CTC(keras.losses.Loss):
    """Connectionist temporal classification over the real frames."""

    def call(self, y_true, y_pred):
        y_true = ops.cast(y_true, "int32")
        return ops.ctc_loss(y_true[:, 1:], y_pred, ops.ones_like(y_true[:, 0]), y_true[:, 0])


def concordance(y, y_pred):
    """A loss of the whole batch."""
    return ops.sum((y - y_pred) ** 2) / (8.0 + ops.sum(y_pred**2))


def cross_entropy(**settings):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **settings)


def squares():
    return "mse"


MARKED = np.where(REAL, TAGS, -1)
WEIGHTS = RNG.uniform(0.5, 1.5, (SAMPLES, STEPS)) * REAL

#: Functions that return model and loss; inputs, targets, sample weights.
CASES: dict[str, Any] = {
    "gru": (sequence_model(lambda x: layers.GRU(5)(x)), squares, X, Y, None),
    "lstm": (sequence_model(lambda x: layers.LSTM(5)(x)), squares, X, Y, None),
    "bidirectional": (
        sequence_model(lambda x: layers.Bidirectional(layers.LSTM(4))(x)),
        squares,
        X,
        Y,
        None,
    ),
    "attention": (sequence_model(attention), squares, X, Y, None),
    "pooling": (
        sequence_model(lambda x: layers.GlobalAveragePooling1D()(x)),
        squares,
        X,
        Y,
        RNG.uniform(0.5, 2, SAMPLES),
    ),
    "tags": (tagger, cross_entropy, X, TAGS, None),
    "weighted_tags": (tagger, cross_entropy, X, TAGS, WEIGHTS),
    "ignored_tags": (tagger, lambda: cross_entropy(ignore_class=-1), X, MARKED, None),
    "two_outputs": (two_outputs, lambda: [cross_entropy(), "mse"], X, [TAGS, Y], None),
    "two_inputs": (two_inputs, squares, [X, OTHER], Y, None),
    "ctc": (frames, CTC, FRAMES, LABELS, None),
    "whole": (sequence_model(lambda x: layers.GRU(5)(x)), lambda: concordance, X, Y, None),
    "neighbours": (sequence_model(lambda x: layers.GRU(5)(x)), lambda: neighbours, X, Y, None),
    "whole_tags": (tagger, lambda: of_tags, X, MARKED, None),
}
QUICK = ["whole_tags"]


def trained(case, optimizer=None, size=None, padding: Any = 0, **settings):
    make, loss, x, y, weights = CASES[case] if isinstance(case, str) else case
    keras.utils.set_random_seed(1)
    model = make()
    settings = {"jit_compile": BACKEND == "jax", **settings}
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, loss(), **settings)
    if size is not None:
        ranger.microbatch(model, size, padding=padding)
    # JAX takes long without compilation.
    epochs = EPOCHS if settings["jit_compile"] or BACKEND != "jax" else 2
    history = fit(model, x, y, BATCH, epochs=epochs, sample_weight=weights)
    return model, history.history


@pytest.mark.parametrize("case", first_but(QUICK, CASES))
def test_weights_are_those_of_the_padded_batch(float64, case):
    plain, history = trained(case)
    ours, own = trained(case, size=5)
    # On JAX, Keras' attention computes in float32.
    tolerance = max(TOLERANCE, 1e-7) if case == "attention" else TOLERANCE
    assert_same_weights(ours, plain, tolerance)
    np.testing.assert_allclose(own["loss"], history["loss"], rtol=1e-6)


@first
def test_a_batch_that_is_one_micro_batch(float64):
    plain, _ = trained("neighbours")
    ours, _ = trained("neighbours", size=BATCH)
    assert_same_weights(ours, plain, TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    thorough_but(
        [{"jit_compile": False}] if BACKEND != "jax" else [],
        [{"run_eagerly": True, "jit_compile": False}, {"jit_compile": False}],
    ),
    ids=str,
)
def test_other_ways_to_run(float64, settings):
    case = (*CASES["pooling"][:4], None)
    plain, _ = trained(case, keras.optimizers.Adam(0.01), **settings)
    ours, _ = trained(case, keras.optimizers.Adam(0.01), size=5, **settings)
    assert_same_weights(ours, plain, TOLERANCE)


if BACKEND == "tensorflow":

    def test_xla(float64):
        case = CASES["pooling"]
        plain, _ = trained(case, jit_compile=True)
        ours, _ = trained(case, size=5, jit_compile=True)
        assert_same_weights(ours, plain, TOLERANCE)


def drawing(x):
    x = layers.Dropout(0.3)(x)
    x = layers.SpatialDropout1D(0.2)(layers.GaussianNoise(0.1, seed=3)(x))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, dropout=0.2)(x, x)])
    x = layers.GRU(4, dropout=0.2, recurrent_dropout=0.2, return_sequences=True)(x)
    return layers.Dropout(0.2)(layers.GlobalAveragePooling1D()(x))


@pytest.mark.parametrize("loss", first_but([squares], [squares, lambda: neighbours]))
def test_draws_are_those_of_the_padded_batch(float64, loss):
    case = sequence_model(drawing), loss, X, Y, None
    whole = trained(case, size=BATCH, padding=None)[0] if BACKEND == "torch" else trained(case)[0]
    assert_same_weights(trained(case, size=5)[0], whole, TOLERANCE)


@first
def test_metrics_of_the_whole_batch(float64):
    def spread(y, y_pred):
        return ops.max(y_pred) - ops.min(y_pred) + 0.0 * ops.sum(y)

    settings = {"metrics": [spread, "mae"]}
    _, history = trained("gru", **settings)
    _, own = trained("gru", size=5, **settings)
    for name, values in history.items():
        np.testing.assert_allclose(own[name], values, rtol=1e-6, err_msg=name)


@first
def test_weighted_metrics_leave_padding_out(float64):
    def steps_apart():
        x = keras.Input((None, 3))
        return keras.Model(x, layers.Dense(3)(x))

    settings = {"weighted_metrics": ["sparse_categorical_accuracy"]}

    def loss():
        return cross_entropy(reduction="mean_with_sample_weight")

    case = steps_apart, loss, FRAMES, TAGS, WEIGHTS
    _, history = trained(case, **settings)
    _, own = trained(case, size=5, **settings)
    for name, values in history.items():
        np.testing.assert_allclose(own[name], values, rtol=1e-6, err_msg=name)


@first
def test_a_function_of_trimmed_outputs_is_refused():
    def spread(y, y_pred):
        return ops.max(y_pred) - ops.min(y_pred)

    with pytest.raises(ValueError, match="a metric of this model is a function of the whole batch"):
        trained("ctc", size=5, metrics=[spread])


@first
def test_auto_finds_a_size(float64):
    plain, _ = trained("gru")
    ours, _ = trained("gru", size="auto")
    assert_same_weights(ours, plain, TOLERANCE)


@first
def test_a_sample_without_a_word(float64):
    x = X.copy()
    x[3] = 0
    case = (*CASES["gru"][:2], x, Y, None)
    plain, _ = trained(case)
    ours, _ = trained(case, size=5)
    assert_same_weights(ours, plain, TOLERANCE)


if BACKEND == "jax":

    def test_compiled_shapes_are_few(float64):
        """A batch of which `size` is a divisor is run in as many shapes as there are buckets."""
        from tensorflow_ranger.training.padding import BUCKETS

        x = RNG.integers(1, WORDS, (48, STEPS))
        x *= np.arange(STEPS) < RNG.integers(1, STEPS + 1, (48, 1))  # of every length
        y = RNG.normal(size=(48, 2))
        model, _ = trained((*CASES["pooling"][:2], x, y, None), size=6)
        ((_, step),) = model.make_train_function.__self__.maker.made.values()
        assert step._add._cache_size() <= BUCKETS
