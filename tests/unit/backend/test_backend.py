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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softplus(dtype, float64):
    values = np.concatenate([np.linspace(0, 60, 2001), [1e-8, 103.0, 700.0, 1e30]]).astype(dtype)
    actual = keras.ops.convert_to_numpy(arrays.softplus(tensor(values, dtype)))
    assert actual.dtype == dtype
    expected = np.logaddexp(values.astype("longdouble"), 0)
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected.astype("float64"), rtol=tolerance)


@pytest.mark.parametrize("wrap", [compiled, lambda function: function], ids=["compiled", "eager"])
def test_computed_changes_nothing(wrap):
    one, (two, three) = wrap(
        lambda a, b, c: arrays.computed([a + 1, (b, c)]),
    )(tensor(1.0), tensor([2.0]), tensor([3.0]))
    assert [float(one), float(two[0]), float(three[0])] == [2.0, 2.0, 3.0]


@pytest.mark.parametrize("where", [True, False])
def test_blend_where_leaves_others_bit_for_bit(where):
    start = np.array([0.1, -0.0, 3e-45], "float32")
    slot = keras.Variable(start, trainable=False)
    gradient = [1.1, 2.0, 3.0] if where else [np.nan, np.inf, 1e38]
    arrays.blend_where([slot], [tensor(gradient)], 0.25, tensor(where, "bool"))
    actual = keras.ops.convert_to_numpy(slot.value)
    if where:
        np.testing.assert_allclose(actual, [0.35, 0.5, 0.75], rtol=1e-6)
    else:
        assert actual.tobytes() == start.tobytes()


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
