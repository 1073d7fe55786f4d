"""One map per unit does what clipping, centralization and normalization do one after the other."""

import itertools

import keras
import numpy as np
import pytest

from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping
from tensorflow_ranger.rules.unit_shaping import shaping
from tests.references.ranger_family import Ranger21Twin

CLIPPING = AdaptiveGradientClipping(0.05, 1e-2)
CASES = {"kernel": ((3, 3, 2, 4), (0, 1, 2)), "table": ((6, 3), (-1,)), "bias": ((5,), None)}


def gradient_of(shape, offset):
    rng = np.random.default_rng(0)
    # Units of very different sizes: some are clipped, and others not.
    return (rng.normal(size=shape) + offset) * 10.0 ** rng.integers(-3, 3, shape[-1])


def shaped(gradient, axes, clipping_factor, centralize, normalize):
    tensor = keras.ops.convert_to_tensor(gradient)
    shift, factor = shaping(tensor, axes, clipping_factor, centralize, normalize)
    return keras.ops.convert_to_numpy(factor * (tensor - shift))


@pytest.mark.parametrize("offset", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_is_one_after_the_other(case, clip, offset, float64):
    shape, axes = CASES[case]
    gradient, weight = gradient_of(shape, offset), np.random.default_rng(1).normal(size=shape)
    norms = keras.ops.convert_to_tensor(np.sqrt((weight**2).sum(axis=axes, keepdims=True)))
    for centralize, normalize in itertools.product([False, True], repeat=2):
        twin = Ranger21Twin(
            [weight],
            [axes or tuple(range(len(shape)))],
            lookahead=None,
            adaptive_clipping=None,
            centralize=centralize,
            normalize=normalize,
        )
        clipped = gradient
        if clip:
            most = 0.05 * np.maximum(np.asarray(keras.ops.convert_to_numpy(norms)), 1e-2)
            norm = np.sqrt((gradient**2).sum(axis=axes, keepdims=True))
            clipped = gradient * np.minimum(1.0, most / norm)
        expected = twin.prepared(0, clipped)
        factor = (lambda norm: CLIPPING.factor(norm, norms)) if clip else None
        actual = shaped(gradient, axes, factor, centralize, normalize)
        # The mean that is taken off may be 1e4 times what is left.
        size = np.abs(expected).max() * max(1.0, offset)
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13 * size)


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_a_large_mean_costs_no_digits_of_the_deviation(mean):
    gradient = (np.random.default_rng(0).normal(size=(1000, 3)) + mean).astype("float32")
    actual = shaped(gradient, (0,), None, True, True)
    wide = gradient.astype("float64")
    deviations = wide - wide.mean(axis=0)
    expected = deviations / (deviations.std(ddof=1) + 1e-8)
    # A sum of squares less a square of sums would be off by a hundredth.
    np.testing.assert_allclose(actual, expected, atol=1e-3 if mean else 2e-6)


def test_a_unit_of_one_weight_keeps_its_mean():
    gradient = np.array([[3.0, -4.0]], "float32")
    np.testing.assert_array_equal(shaped(gradient, (0,), None, True, False), gradient)


def test_two_elements_are_not_normalized():
    gradient = np.array([3.0, -4.0], "float32")
    np.testing.assert_array_equal(shaped(gradient, None, None, False, True), gradient)
