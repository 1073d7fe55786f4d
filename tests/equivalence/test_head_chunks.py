"""Logits in chunks give the weights, the state and the History of plain Keras on whole batches."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, losses, metrics, ops

import tensorflow_ranger as ranger
from tests.marks import first, first_but, thorough_but
from tests.models import MODES, assert_same_variables, fit

BACKEND = keras.config.backend()
BATCH, SIZE, EPOCHS = 8, 3, 10  # 20 updates, and a remainder of samples
LENGTH, WIDTH, WORDS = 5, 6, 11
CHUNKS = 4  # of 4 rows, and a remainder of rows
FIRST, *OTHERS = MODES
# Keras on PyTorch computes means in float32.
TOLERANCE = {"torch": 1e-6, "jax": 1e-12, "tensorflow": 1e-12}[BACKEND]


def language_model(head=None, mask_zero=False, length=None, body=None):
    """Return a model that ends with `head`, given the hidden states of `body`."""
    words = keras.Input((length,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH, mask_zero=mask_zero)(words)
    x = (body or layers.Dense(WIDTH, activation="tanh"))(x)
    return keras.Model(words, (head or layers.Dense(WORDS))(x))


def recurrent(**settings):
    return language_model(body=layers.GRU(WIDTH, return_sequences=True), **settings)


def tied(**settings):
    words = keras.Input((LENGTH,), dtype="int32")
    table = layers.ReversibleEmbedding(WORDS, WIDTH, **settings)
    x = layers.Dense(WIDTH, activation="tanh")(table(words))
    return keras.Model(words, table(x, reverse=True))


def classifier():
    words = keras.Input((LENGTH,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(WORDS, WIDTH)(words))
    return keras.Model(words, layers.Dense(WORDS, activation="softmax", use_bias=False)(x))


def nested():
    head = keras.Sequential(
        [
            keras.Input((LENGTH, WIDTH)),
            layers.Dense(WIDTH, activation="tanh", activity_regularizer="l2"),
            layers.Dense(WORDS, kernel_regularizer="l2", kernel_constraint="max_norm"),
            layers.Activation("softmax"),
        ]
    )
    return language_model(head, length=LENGTH)


def frozen():
    return language_model(layers.Dense(WORDS, trainable=False))


def named():
    words = keras.Input((LENGTH,), dtype="int32")
    x = layers.Dense(WIDTH, activation="tanh")(layers.Embedding(WORDS, WIDTH)(words))
    return keras.Model(words, {"words": layers.Dense(WORDS)(x)})


def of_classes(logits=True, **settings):
    return losses.SparseCategoricalCrossentropy(from_logits=logits, **settings)


def one_hot(y):
    return np.eye(WORDS)[y]


def per_sample(y):
    return np.linspace(0.2, 2.0, len(y))[:, None]


def per_token(y):
    return np.linspace(0.0, 2.0, y.size).reshape(y.shape)


def squared(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


ACCURACY = {
    "metrics": lambda: ["accuracy"],
    "weighted_metrics": lambda: [
        metrics.SparseCategoricalCrossentropy(from_logits=True),
        "accuracy",
    ],
}
# Arguments of `trained`.
CASES = {
    "logits": {"settings": ACCURACY},
    "recurrent": {"make": lambda: recurrent(mask_zero=True)},
    "sum": {"loss": lambda: of_classes(reduction="sum")},
    "weights of samples": {"weight": per_sample, "settings": ACCURACY},
    "weights of tokens": {"weight": per_token, "settings": ACCURACY},
    "mean of weights": {
        "weight": per_sample,
        "loss": lambda: of_classes(reduction="mean_with_sample_weight"),
    },
    "mask": {
        "make": lambda: language_model(mask_zero=True),
        "settings": ACCURACY,
    },
    "mask and weights": {
        "make": lambda: language_model(mask_zero=True),
        "weight": per_token,
        "loss": lambda: of_classes(reduction="mean_with_sample_weight"),
        "settings": ACCURACY,
    },
    "mask and mean": {"make": lambda: language_model(mask_zero=True), "weight": per_token},
    "ignored class": {"loss": lambda: of_classes(ignore_class=0)},
    "mask and ignored class": {
        "make": lambda: language_model(mask_zero=True),
        "loss": lambda: of_classes(ignore_class=1),
    },
    "label smoothing": {
        "make": lambda: language_model(layers.Dense(WORDS, "softmax")),
        "loss": lambda: losses.CategoricalCrossentropy(label_smoothing=0.1),
        "targets": one_hot,
        "settings": {"metrics": lambda: ["accuracy", metrics.MeanSquaredError()]},
    },
    "several labels": {
        "make": lambda: language_model(layers.Dense(WORDS, "sigmoid", use_bias=False)),
        "loss": lambda: losses.BinaryFocalCrossentropy(),
        "targets": one_hot,
        "settings": {
            "metrics": lambda: [
                metrics.AUC(num_thresholds=5, name="auc"),
                metrics.Recall(name="recall"),
            ]
        },
    },
    "own loss": {"loss": lambda: squared, "targets": one_hot},
    "column": {"targets": lambda y: y[..., None], "weight": per_token},
    "tied": {"make": tied, "settings": ACCURACY},
    "tied, capped": {"make": lambda: tied(logit_soft_cap=2.0, mask_zero=True)},
    "tied by name alone": {"make": lambda: tied(tie_weights=False)},
    "classifier": {
        "make": classifier,
        "loss": lambda: of_classes(False),
        "targets": lambda y: y[:, 0],
        "weight": lambda y: per_sample(y)[:, 0],
        "settings": {"metrics": lambda: ["accuracy"]},
    },
    "nested": {
        "make": nested,
        "loss": lambda: of_classes(False),
        "settings": {"metrics": lambda: ["accuracy"]},
    },
    "frozen": {"make": frozen},
    "names": {
        "make": named,
        "loss": lambda: {"words": of_classes()},
        "targets": lambda y: {"words": y},
    },
}

QUICK = ["recurrent", "mask and weights", "several labels", "tied", "nested"]


def trained(
    microbatch=None,
    make=language_model,
    loss=of_classes,
    targets=np.asarray,
    weight=None,
    settings=None,
    mode=None,
    words=None,
):
    """Return a model after 20 updates, and its History: of plain Keras without `microbatch`."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    shape = 2 * BATCH, LENGTH
    x = rng.integers(0, WORDS, shape) if words is None else words
    y = rng.integers(0, WORDS, shape)
    model = make()
    given = {name: function() for name, function in (settings or {}).items()}
    optimizer = keras.optimizers.SGD(0.1, momentum=0.5)
    model.compile(optimizer, loss(), **given, **(mode or MODES[FIRST]))
    if microbatch is not None:
        ranger.microbatch(model, SIZE, **microbatch)
    weight = None if weight is None else weight(y)
    # JAX takes long without compilation.
    epochs = 2 if BACKEND == "jax" and mode == MODES["eager"] else EPOCHS
    return model, fit(model, x, targets(y), BATCH, epochs, sample_weight=weight).history


def assert_same(actual, expected, tolerance=TOLERANCE, of_history=1e-5):
    (model, history), (other, own_history) = actual, expected
    assert_same_variables(model, other, tolerance)
    for variable, value in zip(model.metrics_variables, other.metrics_variables, strict=True):
        values = ops.convert_to_numpy(variable), ops.convert_to_numpy(value)
        np.testing.assert_allclose(*values, rtol=of_history, atol=1e-6, err_msg=variable.path)
    assert history.keys() == own_history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, own_history[name], rtol=of_history, err_msg=name)


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        *first_but({(case, FIRST) for case in QUICK}, [(case, FIRST) for case in CASES]),
        *thorough_but({("tied", "XLA")}, [(case, mode) for case in CASES for mode in OTHERS]),
    ],
)
@pytest.mark.usefixtures("float64")
def test_the_weights_are_those_of_plain_keras(case, mode):
    expected = trained(**CASES[case], mode=MODES[mode])
    actual = trained({"head_chunks": CHUNKS}, **CASES[case], mode=MODES[mode])
    assert "computed in chunks" in actual[0].microbatch_plan.head
    assert_same(actual, expected)


def dropped():
    words = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH)(words)
    for _ in range(3):
        x = x + layers.Dropout(0.2)(layers.Dense(WIDTH, "tanh")(x))
    return keras.Model(words, layers.Dense(WORDS)(layers.LayerNormalization()(x)))


@functools.cache
def whole():
    """Return what `dropped` comes to with logits that stay whole."""
    return trained({"head_chunks": 1, "rematerialize": False}, dropped)


@pytest.mark.parametrize("chunks", first_but([2], [2, 15, 100]))
@pytest.mark.usefixtures("float64")
def test_any_number_of_chunks(chunks):
    assert_same(trained({"head_chunks": chunks}, dropped), whole())


@first
@pytest.mark.usefixtures("float64")
def test_a_loss_without_a_reduction():
    def loss():
        return of_classes(reduction="none")

    assert_same(trained({"head_chunks": CHUNKS}, loss=loss), trained({"head_chunks": 1}, loss=loss))


@pytest.mark.usefixtures("float64")
def test_layers_are_run_again_below_the_head():
    actual = trained({"head_chunks": CHUNKS, "rematerialize": 3}, dropped)
    assert_same(actual, whole())
    assert "layers' calls again" in actual[0].microbatch_plan.rematerialization


@first
@pytest.mark.usefixtures("float64")
def test_trimmed_padding():
    rng = np.random.default_rng(0)
    words = rng.integers(1, WORDS, (2 * BATCH, LENGTH))
    words *= np.arange(LENGTH) < rng.choice([2, LENGTH], (2 * BATCH, 1))

    def make():
        return recurrent(mask_zero=True)

    actual = trained({"head_chunks": CHUNKS, "padding": 0}, make, words=words)
    assert "padded time steps" in actual[0].microbatch_plan.padding
    assert_same(actual, trained(None, make, words=words))


@pytest.mark.parametrize("scaled", first_but([True], [False, True]))
def test_mixed_precision(scaled):
    dtype = "mixed_float16" if scaled else "mixed_bfloat16"

    def make():
        words = keras.Input((LENGTH,), dtype="int32")
        x = layers.Embedding(WORDS, WIDTH, dtype=dtype)(words)
        x = layers.Dense(WIDTH, "tanh", dtype=dtype)(x)
        return keras.Model(words, layers.Dense(WORDS, dtype=dtype)(x))

    def after(chunks):
        return trained({"head_chunks": chunks}, make)

    if scaled and BACKEND == "torch":
        pytest.skip("PyTorch multiplies no float16 matrices on every processor.")
    assert_same(after(CHUNKS), after(1), tolerance=0.02, of_history=1e-3)
