"""verify: finds what differs between a batch and its micro-batches, names it, changes nothing."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger import microbatch
from tensorflow_ranger.training.compiled_losses import CompiledLosses
from tensorflow_ranger.training.verification.verify import Verification, verify
from tests.marks import first, first_but
from tests.models import assert_same_weights, data, fit

BACKEND = keras.config.backend()


def model_with(*middle, loss: object = "mse", cls=keras.Model):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = layers.Dense(5, activation="tanh", name="first")(inputs)
    for layer in middle:
        x = layer(x)
    model = cls(inputs, layers.Dense(2, name="last")(x))
    model.compile("sgd", loss, jit_compile=False)  # seconds to compile
    return model


def sequences(reduction):
    """Return a compiled model of masked sequences with two outputs, and a batch for it."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 3, mask_zero=True)(inputs)
    x = layers.LSTM(3, return_sequences=True, name="memory")(x)
    outputs = {"token": layers.Dense(2, name="token")(x)}
    outputs["pooled"] = layers.Dense(1, name="pooled")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer="sgd",
        loss={"token": keras.losses.MeanSquaredError(reduction), "pooled": "mae"},
        loss_weights={"token": 2.0, "pooled": 0.5},
        jit_compile=BACKEND == "jax",
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 5, (22, 4)).astype("int32")
    tokens[np.arange(4) >= rng.integers(1, 5, (22, 1))] = 0
    y = {"token": rng.normal(size=(22, 4, 2)), "pooled": rng.normal(size=(22, 1))}
    weights = {"token": rng.uniform(size=(22, 4)), "pooled": rng.uniform(size=22)}
    return model, (tokens, y, weights)


class Center(layers.Layer):
    """Looks across the batch, and has no state that would tell."""

    def call(self, x):
        return x - ops.mean(x, axis=0)


class Largest(layers.Layer):
    """Divides by the largest sum it has seen in training."""

    def build(self, shape):
        self.largest = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.largest.assign(ops.maximum(self.largest, ops.sum(ops.abs(x))))
        return x / (1 + self.largest)


class Stretched(layers.Layer):
    """Multiplies by gamma-distributed numbers: a loop draws them, so none has its own place."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x, training=False):
        return x * keras.random.gamma(ops.shape(x), 2.0, seed=self.seeds) if training else x


class Holds(layers.Layer):
    """Calls another layer, which is the one that is named."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Stretched(name="inner")

    def call(self, x, training=False):
        return self.inner(x, training=training)


class AddsLargest(layers.Layer):
    def call(self, x):
        self.add_loss(ops.max(x))
        return x


class LargestLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return largest(y, y_pred)


def shares_of(model):
    """Return `model`, each of whose micro-batches has its own part of the loss."""
    return microbatch(model, 16, loss="shares")


def spread(y, y_pred):
    return ops.std(y - y_pred)


def largest(y, y_pred):
    return ops.max(ops.square(y - y_pred))


def test_a_plain_model_is_exact():
    found = verify(model_with(), data(), 20)
    assert found.exact
    assert found.reasons == ()
    assert (found.size, found.samples) == (20, 48)
    assert list(found.differences) == ["first/kernel", "first/bias", "last/kernel", "last/bias"]
    assert max(found.differences.values()) < 1e-6
    assert "Same to rounding: the gradient of 48 samples whole and 20 at a time" in str(found)


@pytest.mark.parametrize(
    "reduction",
    first_but(["mean_with_sample_weight"], ["sum_over_batch_size", "mean_with_sample_weight"]),
)
def test_masks_weights_and_two_outputs_are_exact(reduction):
    model, batch = sequences(reduction)
    before = [array.copy() for array in keras.tree.flatten(batch)]
    found = verify(model, batch, 8)
    assert found.exact, found
    assert max(found.differences.values()) < 1e-5
    for array, old in zip(keras.tree.flatten(batch), before, strict=True):
        np.testing.assert_array_equal(array, old)


@first
def test_one_weight_per_sample_stands_for_all_outputs():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(1)(inputs)])
    model.compile("sgd", ["mse", "mae"], jit_compile=False)
    x, y = data(12)
    found = verify(model, (x, [y, y[:, :1]], np.linspace(0, 1, 12)), 5)
    assert found.exact, found


@first
def test_a_gradient_that_is_zero_but_for_rounding_is_exact():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3)(inputs, inputs))
    model.compile("sgd", "mse", jit_compile=False)  # the key's bias changes nothing
    rng = np.random.default_rng(0)
    found = verify(model, (rng.normal(size=(40, 4, 6)), rng.normal(size=(40, 4, 6))), 7)
    assert found.exact, found


@first
def test_float64_has_a_smaller_tolerance(float64):
    # Keras remembers the first policy, whatever floatx became since.
    keras.config.set_dtype_policy("float64")
    try:
        model = model_with()
    finally:
        keras.config.set_dtype_policy("float32")
    found = verify(model, data(), 20)
    assert found.exact
    assert found.tolerance == pytest.approx(2**-11.5 if BACKEND == "torch" else 2**-26)
    assert max(found.differences.values()) < (1e-6 if BACKEND == "torch" else 1e-12)


def test_a_model_without_weights_is_exact():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.ReLU()(inputs))
    model.compile("sgd", "mse", jit_compile=False)
    found = verify(model, (data()[0], data()[0]), 20)
    assert found.exact
    assert found.differences == {}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: layers.BatchNormalization(name="x"), "BatchNormalization 'x' normalized each"),
        (lambda: Stretched(name="x"), "Stretched 'x' drew random numbers"),
        (lambda: Holds(name="x"), "Stretched 'x/inner' drew random numbers"),
        (lambda: Center(name="x"), "Center 'x' looks across the batch"),
        (lambda: Largest(name="x"), "Largest 'x' looks across the batch"),
        (lambda: AddsLargest(name="x"), "A loss added by layer 'x' is neither a mean nor a sum"),
    ],
    ids=["batch norm", "gamma", "inner gamma", "across", "state", "added loss"],
)
def test_a_layer_is_named(layer, reason):
    found = verify(model_with(layer()), data(), 16)
    assert not found.exact
    assert max(found.differences.values()) > 1e-2
    assert [text.startswith(reason) for text in found.reasons] == [True]
    assert "Differs: the gradient of 48 samples" in str(found)
    assert f"- {reason}" in str(found)


@first
def test_every_layer_is_named():
    drawing, normalize = Stretched(name="draws"), layers.BatchNormalization(name="norm")
    found = verify(shares_of(model_with(drawing, normalize, loss=spread)), data(), 16)
    assert [reason.split(" ")[:2] for reason in found.reasons] == [
        ["Stretched", "'draws'"],
        ["BatchNormalization", "'norm'"],
        ["The", "loss"],
    ]


def test_layers_that_draw_by_place_and_frozen_statistics_are_exact():
    drawing = layers.Dropout(0.5), layers.GaussianNoise(0.5, seed=1), layers.Dropout(0.5, seed=1)
    frozen = layers.BatchNormalization(trainable=False)
    found = verify(model_with(*drawing, frozen), data(), 16)
    assert found.exact, found


@pytest.mark.parametrize("loss", [spread, largest])
def test_a_loss_that_is_no_mean_is_named(loss):
    model = model_with(loss=loss)
    assert verify(model, data(), 16).exact
    found = verify(shares_of(model), data(), 16)
    assert not found.exact
    (reason,) = found.reasons
    assert reason.startswith(f"The loss '{loss.__name__}' is neither a mean nor a sum over samples")


@first
def test_the_loss_of_one_of_two_outputs_is_named():
    inputs = keras.Input((6,))
    model = keras.Model(
        inputs, {"a": layers.Dense(2, name="a")(inputs), "b": layers.Dense(2, name="b")(inputs)}
    )
    model.compile("sgd", {"a": "mse", "b": spread}, jit_compile=False)
    x, y = data(12)
    assert verify(model, (x, {"a": y, "b": y}), 4).exact
    found = verify(shares_of(model), (x, {"a": y, "b": y}), 4)
    assert found.differences["a/kernel"] < found.tolerance < found.differences["b/kernel"]
    (reason,) = found.reasons
    assert reason.startswith("The loss 'spread' of output 'b' is neither a mean nor a sum")


def test_a_loss_of_the_model_that_is_no_mean_is_named():
    model = model_with(cls=LargestLoss)
    found = verify(model, data(), 16)
    assert found.exact
    assert "Whole-batch loss: exact." in str(found)
    assert "LargestLoss overrides compute_loss" in str(found)
    found = verify(shares_of(model), data(), 16)
    (reason,) = found.reasons
    assert reason.startswith("LargestLoss.compute_loss is neither a mean nor a sum over samples")


def test_a_loss_of_a_layer_is_named_where_compile_has_none():
    model = model_with(AddsLargest(name="adds"), loss=None)
    result = verify(model, (data(12)[0],), 4)
    assert not result.exact
    assert any("adds" in reason for reason in result.reasons)


@first
def test_a_mean_of_means_is_found(monkeypatch):
    of = CompiledLosses.of

    def mean_of_means(self, x, y, y_pred, sample_weight, samples, whole):
        return of(self, x, y, y_pred, sample_weight, whole.samples / 3, whole)

    monkeypatch.setattr(CompiledLosses, "of", mean_of_means)
    found = verify(model_with(), data(), 20)  # 20, 20 and 8 samples
    assert not found.exact
    assert max(found.differences.values()) > 1e-2


def test_the_whole_batch_has_the_loss_of_keras(monkeypatch):
    of = CompiledLosses.of

    def half(self, *arguments):
        loss, logged, parts = of(self, *arguments)
        return loss / 2, logged, parts

    monkeypatch.setattr(CompiledLosses, "of", half)
    found = verify(model_with(), data(), 20)
    assert found.differences["last/bias"] > 0.3
    (reason,) = found.reasons
    assert reason.startswith("Neither layers nor losses say why.")


@first
def test_gradients_that_cancel_are_exact():
    x, residuals = data()
    x[:] = x[0]
    residuals = 1e3 * (residuals - np.mean(residuals, axis=0))
    model = model_with()
    found = verify(model, (x, ops.convert_to_numpy(model(x)) + residuals), 1)
    assert found.exact, found


def test_a_gradient_that_is_not_finite_is_named():
    x, y = data()
    y[40] = np.nan
    found = verify(model_with(), (x, y), 16)
    assert not found.exact
    assert "The gradient of first/kernel is not finite." in found.reasons


def busy_model():
    """Return a model with every kind of state; each call gives the same."""
    keras.utils.set_random_seed(3)
    middle = layers.BatchNormalization(), layers.Dropout(0.3), Stretched()
    model = model_with(*middle)
    model.compile("adam", "mse", metrics=["mae"], jit_compile=BACKEND == "jax")
    return model


def state(model):
    groups = (model.variables, model.optimizer.variables, model.metrics_variables)
    return [ops.convert_to_numpy(v.value).copy() for group in groups for v in group]


@pytest.mark.parametrize("installed", first_but([True], [False, True]), ids=["plain", "microbatch"])
def test_the_model_is_left_as_it_was(installed):
    x, y = data()
    model, twin = busy_model(), busy_model()
    for each in (twin, model):
        if installed:
            microbatch(each, 7)
        keras.utils.set_random_seed(4)
        fit(each, x, y, 24)
    before, function = state(model), model.train_function
    attributes = [dict(vars(layer)) for layer in model._flatten_layers()]
    found = verify(model, (x, y), 16)
    assert len(found.reasons) == 2
    assert model.train_function is function
    assert hasattr(model, "microbatch_plan") is installed
    assert [dict(vars(layer)) for layer in model._flatten_layers()] == attributes
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert_same_history(twin, model, x, y)


def assert_same_history(model, other, x, y):
    """Fail unless a `fit` of both, the second after `verify`, gives the very same numbers."""
    keras.utils.set_random_seed(4)
    history = fit(model, x, y, 24).history
    keras.utils.set_random_seed(4)
    verify(other, (x, y), 16)
    assert fit(other, x, y, 24).history == history
    assert_same_weights(other, model, tolerance=0)


@first
def test_a_model_that_is_not_built_is_built_without_its_optimizer():
    def make():
        keras.utils.set_random_seed(3)
        # Without a seed it would draw from PyTorch's generator, as `fit` does to build a model.
        model = keras.Sequential([layers.Dense(4), layers.Dropout(0.5, seed=1), layers.Dense(2)])
        model.compile("adam", "mse", metrics=["mae"], jit_compile=False)
        return model

    x, y = data()
    model, twin = make(), make()
    verify(model, (x, y), 16)
    assert model.built
    assert not model.optimizer.built
    assert_same_history(twin, model, x, y)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch keeps gradients on the parameters")
def test_gradients_of_a_loop_of_ones_own_stay():
    model = model_with()
    x, y = data()
    ops.mean((model(x) - ops.convert_to_tensor(y)) ** 2).backward()
    gradients = [weight.value.grad for weight in model.trainable_variables]
    verify(model, (x, y), 16)
    assert all(
        weight.value.grad is gradient
        for weight, gradient in zip(model.trainable_variables, gradients, strict=True)
    )


def test_an_object_that_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"needs a keras\.Model as its first argument: got Dense"):
        verify(layers.Dense(1), data(), 4)


def test_a_model_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match=r"Call model\.compile first"):
        verify(keras.Sequential([layers.Dense(2)]), data(), 4)


def test_a_train_step_of_ones_own_is_refused():
    class Own(keras.Model):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    with pytest.raises(ValueError, match="Own overrides it"):
        verify(model_with(cls=Own), data(), 4)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "auto", None])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="size must be an integer >= 1: got"):
        verify(model_with(), data(), size)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((0, 6)), np.zeros((0, 2))), "at least one sample"),
        ((np.zeros((4, 6)), np.zeros((3, 2))), r"leading axes of one size.*\(4, 6\), \(3, 2\)"),
        ((np.zeros((4, 6)), 1.0), "must hold arrays with a leading axis.*got float. Make arrays"),
        ((None, None), "at least one sample"),
    ],
)
def test_a_batch_that_is_none_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        verify(model_with(), batch, 4)


def test_a_long_table_shows_the_largest_differences():
    differences = {f"layer_{i}/kernel": i * 1e-9 for i in range(30)} | {"nan": float("nan")}
    lines = str(Verification(differences, 1e-4, ("Why.",), 4, 8)).splitlines()
    assert lines[1].split() == ["nan", "nan"]
    assert lines[2].split() == ["layer_29/kernel", "2.9e-08"]
    assert lines[21] == "... and 11 variables that differ less"
    assert lines[-2].startswith("Differs: ")
    assert lines[-1] == "- Why."
