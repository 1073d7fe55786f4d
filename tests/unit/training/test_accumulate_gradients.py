"""Micro-batches give the value and the gradients of the whole batch, in less memory."""

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.training.accumulate_gradients import accumulate_gradients
from tests.marks import thorough_but
from tests.unit.training.gradients import (
    BACKEND,
    MODES,
    SAMPLES,
    SIZES,
    accumulated,
    array,
    assert_close,
    masked_loss,
    mean,
    mean_loss,
    not_jax,
    reference,
    regression,
    squared_errors,
    variable,
)


@pytest.fixture
def float64_layers(float64):
    """Make layers that compute in float64."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_a_mean_loss_is_that_of_the_whole_batch(size, mode, float64):
    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, gradients = accumulated(mean_loss, variables, batch, size, mode)
    expected_value, expected = reference(weights, batch, np.ones((SAMPLES, 1)))
    assert_close([value, *gradients], [expected_value, *expected], 1e-10)
    for tensor in (value, *gradients):
        assert keras.backend.standardize_dtype(tensor.dtype) == "float64"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_a_masked_loss_is_that_of_the_whole_batch(size, mode, float64):
    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, gradients = accumulated(masked_loss, variables, batch, size, mode)
    expected_value, expected = reference(weights, batch, batch[2])
    assert_close([value, *gradients], [expected_value, *expected], 1e-10)


def test_a_mean_of_masked_means_is_another_loss(float64):
    def masked_mean(weights, micro_batch):
        total, mass = masked_loss(weights, micro_batch)
        return total / ops.maximum(mass, 1.0)

    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, _ = accumulated(masked_mean, variables, batch, 3)
    expected, _ = reference(weights, batch, batch[2])
    assert abs(float(array(value)) / expected - 1) > 0.1


def test_the_mass_may_be_a_number(float64):
    def loss_fn(weights, micro_batch):
        x, y, _ = micro_batch
        return ops.sum(squared_errors(weights, x, y)), 2 * x.shape[0]

    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, gradients = accumulated(loss_fn, variables, batch, 4)
    expected_value, expected = reference(weights, batch, np.ones((SAMPLES, 1)))
    assert_close([value, *gradients], [expected_value / 2, *(g / 2 for g in expected)], 1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_the_mass_is_not_differentiated(mode):
    def loss_fn(weights, micro_batch):
        rows = ops.sum(ops.ones_like(micro_batch))
        return ops.sum(weights[0] * micro_batch), ops.sum(weights[0]) * rows

    value, (gradient,) = accumulated(
        loss_fn, [variable([2.0], "float32")], np.ones((5, 1), "float32"), 2, mode
    )
    assert_close([value, gradient], [1.0, [0.5]], 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_no_mass_gives_zeros(mode):
    def loss_fn(weights, micro_batch):
        x, mask = micro_batch
        return ops.sum(weights[0] * x) + ops.sum(weights[0]), ops.sum(mask)

    batch = (np.ones((5, 1), "float32"), np.zeros(5, "int32"))
    value, gradients = accumulated(loss_fn, [variable([2.0], "float32")], batch, 2, mode)
    assert_close([value, *gradients], [0.0, [0.0]], 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_may_be_nested_and_hold_none(mode):
    def loss_fn(weights, micro_batch):
        (tokens, nothing), rest = micro_batch["inputs"], micro_batch["rest"]
        assert nothing is None
        assert rest["y"].shape[1] == 2
        x = ops.cast(tokens, "float32")
        return ops.mean(ops.sum(rest["y"], axis=1) * x) * weights[0]

    tokens = np.arange(7, dtype="int32")
    y = np.random.default_rng(0).normal(size=(7, 2)).astype("float32")
    batch = {"inputs": (tokens, None), "rest": {"y": y}}
    value, gradients = accumulated(loss_fn, [variable(3.0, "float32")], batch, 2, mode)
    expected = np.mean(y.sum(axis=1) * tokens)
    assert_close([value, *gradients], [3 * expected, expected], 1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", thorough_but(["bfloat16"], ["bfloat16", "float16"]))
def test_sums_of_narrow_gradients_are_wide(dtype, mode):
    # Each micro-batch has the gradient 1. In bfloat16 their sum stops at 256, in float16 at 2048.
    def loss_fn(weights, micro_batch):
        return ops.sum(weights[0] * micro_batch), 1

    samples = 300 if dtype == "bfloat16" else 2100
    ones = ops.ones((samples, 1), dtype)
    value, (gradient,) = accumulated(loss_fn, [variable([1.0], dtype)], ones, 1, mode)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert keras.backend.standardize_dtype(gradient.dtype) == dtype
    assert_close([value, gradient], [1.0, [1.0]], 0)


def test_dtypes_of_gradients_are_those_of_the_variables():
    def loss_fn(weights, micro_batch):
        wide, narrow = weights
        return ops.mean(ops.cast(narrow, "float32") * wide * micro_batch)

    variables = [variable([2.0], "float32"), variable([3.0], "bfloat16")]
    value, gradients = accumulated(loss_fn, variables, np.ones((5, 1), "float32"), 2)
    dtypes = [keras.backend.standardize_dtype(gradient.dtype) for gradient in gradients]
    assert dtypes == ["float32", "bfloat16"]
    assert_close([value, *gradients], [6.0, [3.0], [2.0]], 0)


def test_numpy_arrays_become_tensors():
    def loss_fn(weights, micro_batch):
        assert ops.is_tensor(micro_batch)
        return ops.mean(weights[0] * micro_batch)

    weights = [variable(2.0, "float32")]
    function = loss_fn if BACKEND == "jax" else lambda rows: loss_fn(weights, rows)
    value, gradients = accumulate_gradients(function, weights, np.ones((5, 1), "float32"), 2)
    assert_close([value, *gradients], [2.0, 1.0], 1e-6)


@not_jax
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 4])
def test_the_gradient_of_an_unused_variable_is_none(size, mode):
    def loss_fn(weights, micro_batch):
        return ops.mean(weights[1] * micro_batch)

    variables = [variable([1.0], "float32") for _ in range(3)]
    _, gradients = accumulated(loss_fn, variables, np.ones((4, 1), "float32"), size, mode)
    assert gradients[0] is None
    assert gradients[2] is None
    assert_close([gradients[1]], [[1.0]], 0)


def model_and_data():
    """Return a Keras model without batch statistics or randomness, and samples."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(SAMPLES, 6, 3)), rng.normal(size=(SAMPLES, 2))
    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            keras.layers.Conv1D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    return model, (x.astype(keras.config.floatx()), y.astype(keras.config.floatx()))


def model_gradients(model, batch, size):
    """Return what a user of the backend gets for a Keras model."""

    def loss(outputs, y):
        return mean((outputs - y) ** 2)

    if BACKEND != "jax":
        variables = model.trainable_variables
        return accumulate_gradients(
            lambda rows: loss(model(rows[0], training=True), rows[1]), variables, batch, size
        )

    import jax

    def loss_fn(trainable, rows):
        outputs, _ = model.stateless_call(
            trainable, [v.value for v in model.non_trainable_variables], rows[0], training=True
        )
        return loss(outputs, rows[1])

    def call(trainable, batch):
        return accumulate_gradients(loss_fn, trainable, batch, size)

    return jax.jit(call)([v.value for v in model.trainable_variables], batch)


@pytest.mark.parametrize("size", [3, 5, 16])
def test_a_keras_model(size, float64_layers):
    model, batch = model_and_data()
    tolerance = 1e-6 if BACKEND == "torch" else 1e-10
    value, gradients = model_gradients(model, batch, size)
    kernel = model.trainable_variables[-2]
    outputs = array(model(batch[0])) - batch[1]
    features = array(keras.Sequential(model.layers[:-1])(batch[0]))
    np.testing.assert_allclose(array(value), np.mean(outputs**2), rtol=tolerance)
    np.testing.assert_allclose(
        array(gradients[-2]), features.T @ outputs / SAMPLES, rtol=tolerance, atol=tolerance
    )
    assert tuple(kernel.shape) == tuple(gradients[-2].shape)
    whole_value, whole = model_gradients(model, batch, SAMPLES)
    assert_close([value, *gradients], [array(g) for g in (whole_value, *whole)], tolerance)


@pytest.mark.parametrize("size", [3, 10])
def test_an_embedding(size):
    """On TensorFlow its gradient is a `tf.IndexedSlices`."""
    tokens = np.random.default_rng(0).integers(0, 6, size=(SAMPLES, 4))
    tokens[0] = 5

    def loss_fn(weights, rows):
        return ops.mean(ops.sum(ops.take(weights[0], rows, axis=0), axis=(1, 2)))

    table = [variable(np.ones((8, 2)), "float32")]
    for mode in MODES:
        value, (gradient,) = accumulated(loss_fn, table, tokens, size, mode)
        counts = np.bincount(tokens.ravel(), minlength=8) / SAMPLES
        assert_close([value, gradient], [8.0, np.stack([counts, counts], axis=1)], 1e-5)


@pytest.mark.parametrize("size", [0, -1, 1.0, 2.5, True, None, "auto"])
def test_a_size_that_is_no_integer_from_1_is_refused(size):
    with pytest.raises(ValueError, match=rf"size must be an integer >= 1: got {size!r}\. It is"):
        accumulated(mean_loss, [variable(1.0, "float32")], np.ones((3, 1)), size)


def test_an_integer_of_numpy_is_a_size():
    weights, batch = regression("float32")
    variables = [variable(weight, "float32") for weight in weights]
    accumulated(mean_loss, variables, batch, np.int64(3))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), r"must hold at least one array: got none\."),
        ({"x": None}, r"must hold at least one array: got none\."),
        ((np.ones((3, 1)), 2.0), r"must hold arrays: got a leaf of type float\."),
        ((np.ones((3, 1)), np.float32(2)), r"must have a leading axis: got a scalar\."),
        ((np.ones((3, 1)), np.ones(4)), r"axes of the same size: got \[3, 4\]\. Give"),
        (np.ones((0, 2)), r"must hold at least one sample: got 0\."),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        accumulate_gradients(lambda *_: 0.0, [variable(1.0, "float32")], batch, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: None, r"got NoneType\. Reduce the loss"),
        (lambda loss: 2.0, r"got float\."),
        (lambda loss: loss[None], r"got \w+ of shape .*1.*\."),
        (lambda loss: (loss, loss, loss), r"got \(.*\)\."),
        (lambda loss: (loss, None), r"of shape .*, NoneType\)\."),
        (lambda loss: (loss, loss[None]), r"got \(.*\)\."),
        (lambda loss: {"loss": loss}, r"got dict\."),
    ],
    ids=["none", "number", "vector", "triple", "no_mass", "vector_mass", "dict"],
)
def test_a_loss_that_is_no_scalar_is_refused(result, message, mode):
    def loss_fn(weights, micro_batch):
        return result(ops.mean(weights[0] * micro_batch))

    weights = [variable(1.0, "float32")]
    with pytest.raises(TypeError, match=rf"loss_fn must return a scalar tensor.*{message}"):
        accumulated(loss_fn, weights, np.ones((4, 1), "float32"), 2, mode)
