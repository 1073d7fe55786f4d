"""padding=: what it refuses, and how it names what depends on padding."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tensorflow_ranger.training.padding import Padding
from tests.marks import first, first_but
from tests.models import assert_same_weights, fit

BACKEND = keras.config.backend()
STEPS, WORDS, SAMPLES = 12, 20, 48
RNG = np.random.default_rng(0)
REAL = np.arange(STEPS) < RNG.integers(1, STEPS + 1, SAMPLES)[:, None]
X = (RNG.integers(1, WORDS, (SAMPLES, STEPS)) * REAL).astype("int32")
Y = RNG.normal(size=(SAMPLES, 2)).astype("float32")
TAGS = RNG.integers(0, 2, (SAMPLES, STEPS)).astype("int32")


def text_model(body, steps: int | None = None, mask_zero=True):
    keras.utils.set_random_seed(1)
    words = keras.Input((steps,), dtype="int32")
    vectors = layers.Embedding(WORDS, 6, mask_zero=mask_zero)(words)
    return keras.Model(words, layers.Dense(2)(body(vectors)))


def trained(model, x=X, y=Y, loss: object = "mse", padding=0, **settings):
    model.compile("sgd", loss, **{"jit_compile": BACKEND == "jax", **settings})
    ranger.microbatch(model, 7, padding=padding)
    fit(model, x, y, 24)
    return model


def mean(x):
    return layers.GlobalAveragePooling1D()(x)


def same_convolution(x):
    return layers.GlobalMaxPooling1D()(layers.Conv1D(4, 3, padding="same", name="conv")(x))


def unmasked_recurrent(x):
    return layers.SimpleRNN(3, name="rnn")(ops.multiply(x, 1.0))


def unmasked_mean(x):
    return ops.mean(x, axis=1)


def sequence(x):
    return layers.Dense(4)(x)


NAMED = {
    "convolution": (same_convolution, "Conv1D 'conv'"),
    "recurrent": (unmasked_recurrent, "SimpleRNN 'rnn'"),
    "operation": (unmasked_mean, "What the model computes between its layers"),
}


@pytest.mark.filterwarnings("ignore:Layer 'conv'.*destroy the mask:UserWarning")
@pytest.mark.parametrize("case", first_but(["convolution"], NAMED))
def test_a_layer_that_reads_padding_is_named(case):
    body, name = NAMED[case]
    with pytest.raises(ValueError, match=f"{name} depends on the padding behind"):
        trained(text_model(body))


@first
def test_a_loss_that_counts_padding_is_named():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = text_model(sequence, mask_zero=False)
    with pytest.raises(ValueError, match="The loss 'sparse_categorical_crossentropy' counts"):
        trained(model, y=TAGS, loss=loss)


@first
def test_a_metric_that_counts_padding_is_named():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    tags = np.where(REAL, TAGS, -1)
    model = text_model(sequence, mask_zero=False)
    with pytest.raises(ValueError, match=r"The metric .accuracy. counts .* weighted_metrics"):
        trained(model, y=tags, loss=loss, metrics=["accuracy"])


@first
def test_a_fixed_time_axis_is_refused():
    with pytest.raises(ValueError, match=r"keras.Input\(\(None, ...\)\)"):
        trained(text_model(mean, steps=STEPS))


@first
def test_padding_before_the_samples_is_refused():
    with pytest.raises(ValueError, match="got samples that begin with padding"):
        trained(text_model(mean), x=X[:, ::-1].copy())


@first
def test_a_model_of_one_length_is_refused():
    class Flat(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.flat = layers.Embedding(WORDS, 4), layers.Flatten()
            self.out = layers.Dense(2)

        def call(self, x):
            return self.out(self.flat(self.table(x)))

    with pytest.raises(ValueError, match="the model cannot be called on fewer steps"):
        trained(Flat())


@pytest.mark.parametrize("padding", [True, "0", [0]])
@first
def test_another_value_is_refused(padding):
    with pytest.raises(ValueError, match="padding must be the number"):
        ranger.microbatch(text_model(mean), 7, padding=padding)


@first
def test_the_check_waits_for_a_batch_with_padding():
    full = RNG.integers(1, WORDS, (24, STEPS)).astype("int32")
    model = text_model(unmasked_mean)
    trained(model, x=full, y=Y[:24])
    with pytest.raises(ValueError, match="What the model computes between its layers"):
        fit(model, X, Y, 24)


@first
def test_the_plan_tells_how_many_steps_are_computed():
    model = trained(text_model(mean))
    assert f"of the first batch's {24 * STEPS} padded time steps" in str(model.microbatch_plan)
    assert ranger.microbatch(model, None)


@first
def test_replicas_whose_samples_were_padded_to_several_sizes_are_refused():
    model = text_model(mean)
    padding = Padding(model, 0, is_compiled=False, is_in_step=True)
    padding.learn(X, model(X), model)
    assert padding.sorted((X, Y, None)) is not None
    with pytest.raises(
        ValueError, match=r"of \[12\] steps on one replica, and of \[9\] on another"
    ):
        padding.sorted((X[:, :9], Y, None))


def test_verify_compares_with_padding():
    model = text_model(mean)
    model.compile("sgd", "mse")
    ranger.microbatch(model, 7, padding=0)
    assert ranger.verify(model, (X[:24], Y[:24]), 7).exact


@first
def test_verify_names_what_reads_padding():
    model = text_model(unmasked_recurrent)
    model.compile("sgd", "mse")
    ranger.microbatch(model, 7, padding=0)
    found = ranger.verify(model, (X[:24], Y[:24]), 7)
    assert not found.exact
    assert "SimpleRNN 'rnn' depends on the padding" in str(found)


@first
def test_noise_is_not_measured_of_sorted_samples():
    model = text_model(mean)
    model.compile("sgd", "mse")
    ranger.microbatch(model, 7, padding=0)
    with pytest.raises(ValueError, match="NoiseScale needs micro-batches of samples"):
        fit(model, X, Y, 24, callbacks=[ranger.callbacks.NoiseScale()])


if BACKEND == "tensorflow":

    def ragged(x, lengths):
        import tensorflow as tf

        of_rows: Any = tf.RaggedTensor
        return of_rows.from_tensor(x, lengths)

    def test_a_strategy_of_one_replica_trims_as_no_strategy_does():
        import tensorflow as tf

        plain = trained(text_model(mean), jit_compile=False)
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            ours = text_model(mean)
            ours.compile("sgd", "mse", jit_compile=False)
        ranger.microbatch(ours, 7, padding=0)
        fit(ours, X, Y, 24)
        assert_same_weights(ours, plain)
        assert str(ours.microbatch_plan) == str(plain.microbatch_plan)

    @pytest.mark.parametrize("strategy", ["MirroredStrategy", "OneDeviceStrategy"])
    @pytest.mark.parametrize("padding", [None, 0])
    def test_one_replica_within_the_scope_of_a_strategy_is_refused(strategy, padding):
        import tensorflow as tf

        made = {
            "MirroredStrategy": lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
            "OneDeviceStrategy": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
        }[strategy]()
        with made.scope():
            model = text_model(mean)
            model.compile("sgd", "mse", jit_compile=False)
            ranger.microbatch(model, 7, padding=padding)
            for run in (
                lambda: fit(model, X, Y, 24),
                lambda: ranger.verify(model, (X, Y), 7),
            ):
                with pytest.raises(
                    ValueError, match=rf"the scope of {strategy}. .* outside of strategy.scope\(\)"
                ):
                    run()

    def test_batches_of_a_data_set_may_have_lengths_of_their_own():
        import tensorflow as tf

        lengths = REAL.sum(axis=1)
        rows = tf.data.Dataset.from_tensor_slices((ragged(X, lengths), Y))
        batches = rows.batch(8).map(lambda x, y: (x.to_tensor(), y))
        plain, ours = text_model(mean), text_model(mean)
        for model in (plain, ours):
            model.compile("sgd", "mse", jit_compile=False)
        ranger.microbatch(ours, 3, padding=0)
        for model in (plain, ours):
            model.fit(batches, shuffle=False, verbose=0)
        assert_same_weights(ours, plain)

    def test_ragged_batches_are_refused():
        import tensorflow as tf

        rows = tf.data.Dataset.from_tensor_slices((ragged(X, REAL.sum(1)), Y))
        model = text_model(mean)
        model.compile("sgd", "mse", jit_compile=False)
        ranger.microbatch(model, 3, padding=0)
        with pytest.raises(ValueError, match="padding=0 trims dense arrays: got RaggedTensor"):
            model.fit(rows.batch(8), shuffle=False, verbose=0)


def spread(y, y_pred):
    return ops.max(y_pred) - ops.min(y_pred) + 0.0 * ops.sum(y)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="traces graphs that take arrays of any shape")
@pytest.mark.parametrize("metrics", [[], [spread]], ids=["loop in a graph", "loop in Python"])
def test_a_graph_is_not_traced_for_each_division(metrics):
    updates = []

    class Adam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            updates.append(variable.name)
            super().update_step(gradient, variable, learning_rate)

    model = text_model(mean)
    model.compile(Adam(), "mse", metrics=metrics)
    ranger.microbatch(model, 7, padding=0)
    fit(model, X, Y, 24)
    seen = len(updates)
    for _ in range(4):
        real = np.arange(STEPS) < RNG.integers(1, STEPS + 1, SAMPLES)[:, None]
        fit(model, (X + 1) * real % WORDS, Y, 24)
    assert len(updates) == seen
