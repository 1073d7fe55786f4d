"""Every backend module gives the same functions, and they do the same."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.backend import arrays


def tensor(values, dtype="float32"):
    return keras.ops.convert_to_tensor(np.array(values), dtype=dtype)


def compiled(function):
    """Return `function` as the backend compiles it."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -2.0], True),
        ([6e4, 6e4, -6e4], True),
        ([np.nan, 1.0], False),
        ([1.0, np.inf], False),
        ([-np.inf, 1.0], False),
        ([np.inf, -np.inf], False),
        ([np.inf, np.nan], False),
        ([], True),
    ],
)
@pytest.mark.parametrize("wrap", [compiled, lambda function: function], ids=["compiled", "eager"])
def test_all_finite(wrap, values, expected, dtype):
    other = tensor([[1.0, 2.0]], dtype)
    finite = wrap(arrays.all_finite)
    assert bool(finite([other, tensor(values, dtype)])) is expected
    assert bool(finite([tensor(values, dtype), other])) is expected


@pytest.mark.parametrize("wrap", [compiled, lambda function: function], ids=["compiled", "eager"])
def test_a_sum_that_overflows_is_finite(wrap):
    assert bool(wrap(arrays.all_finite)([tensor([3e38] * 100), tensor([3e38] * 100)]))


def test_static_value():
    assert arrays.static_value(tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert arrays.static_value(True)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="PyTorch does not trace")
def test_static_value_is_unknown_in_a_trace():
    known = []
    compiled(lambda x: known.append(arrays.static_value(x > 0)))(tensor(1.0))
    assert known == [None]


@pytest.mark.parametrize("predicate", [True, False])
def test_run_if(predicate):
    variable = keras.Variable(1.0, trainable=False)
    arrays.run_if(tensor(predicate, "bool"), lambda: variable.assign(5.0), [variable])
    assert float(variable.value) == (5.0 if predicate else 1.0)


def test_devices_and_version():
    assert any("cpu" in name.lower() for name in arrays.devices())
    assert arrays.version()[0].isdigit()
