"""The buffer's sums, and the dtype they are held in."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.accumulation.buffer import Buffer, accumulator_dtype


@pytest.mark.parametrize(
    ("dtype", "requested", "expected"),
    [
        ("float32", None, "float32"),
        ("bfloat16", None, "float32"),
        ("float16", None, "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float64", "float32", "float32"),
    ],
)
def test_accumulator_dtype(dtype, requested, expected):
    assert accumulator_dtype(dtype, requested) == expected


def test_float64_is_summed_in_float64(float64):
    assert accumulator_dtype(float64) == "float64"


@pytest.mark.skipif(keras.config.backend() != "jax", reason="float64 is switched off on JAX only")
def test_float64_that_is_switched_off_is_summed_in_float32():
    assert accumulator_dtype("float64") == "float32"


@pytest.fixture
def buffer():
    variables = [keras.Variable(np.zeros(2), dtype=dtype) for dtype in ("float32", "bfloat16")]
    return Buffer(variables, lambda v, dtype: keras.Variable(np.zeros(v.shape), dtype=dtype))


def values(tensors):
    return [np.asarray(keras.ops.convert_to_numpy(t), "float64").tolist() for t in tensors]


def tensors(first, second):
    return [
        keras.ops.convert_to_tensor(first, dtype="float32"),
        keras.ops.convert_to_tensor(second, dtype="bfloat16"),
    ]


def test_sums_are_scaled_and_divided(buffer):
    buffer.add(tensors([1.0, 2.0], [3.0, 4.0]), scale=2.0, keep=True)
    buffer.add(tensors([1.0, 1.0], [1.0, 1.0]), scale=6.0, keep=True)
    means = buffer.mean(8.0)
    assert [keras.backend.standardize_dtype(m.dtype) for m in means] == ["float32", "bfloat16"]
    assert values(means) == [[1.0, 1.25], [1.5, 1.75]]


def test_what_is_not_kept_is_not_added(buffer):
    buffer.add(tensors([1.0, np.nan], [3.0, 4.0]), scale=1.0, keep=False)
    assert values(v.value for v in buffer.sums) == [[0.0, 0.0], [0.0, 0.0]]


def test_a_missing_gradient_adds_nothing(buffer):
    first, second = tensors([1.0, 1.0], [2.0, 2.0])
    buffer.add([first, None], scale=1.0, keep=True)
    buffer.add([None, second], scale=1.0, keep=True)
    assert values(v.value for v in buffer.sums) == [[1.0, 1.0], [2.0, 2.0]]


def test_reset_forgets_even_what_is_not_finite(buffer):
    buffer.add(tensors([np.nan, np.inf], [1.0, 1.0]), scale=1.0, keep=True)
    buffer.reset(where=False)
    assert np.isnan(values(v.value for v in buffer.sums)[0][0])
    buffer.reset(where=True)
    assert values(v.value for v in buffer.sums) == [[0.0, 0.0], [0.0, 0.0]]
