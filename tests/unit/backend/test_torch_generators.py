"""PyTorch's placed draws: rate, distribution, and independence of samples, calls and batches.

Seeds are fixed, so a test fails or passes for good; the bounds are those of five deviations.
"""

import math

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.placed_draws import PlacedDraws

if keras.config.backend() != "torch":
    pytest.skip("PyTorch's generators", allow_module_level=True)

from tensorflow_ranger.backend.torch import draws, random_words

COUNT = 2**18
GENERATORS = {"cpu": random_words.stream, "others": random_words.hashes}
SEEDS = [(1, 0), (1, 1), (2, 0), (2**63 + 5, 7)]  # calls of one batch, and other batches


@pytest.fixture(params=GENERATORS)
def bits(request):
    """A function of first number, count and seed that returns words as NumPy's uint64."""

    def bits_of(first, count, seeds):
        found = GENERATORS[request.param]([first], count, list(seeds), "cpu")
        return found.numpy().view(np.uint64)[0]

    return bits_of


def bytes_of(words):
    return words.view(np.uint8)


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_stream_begins_anywhere(bits, seeds):
    np.testing.assert_array_equal(bits(0, 100, seeds)[37:], bits(37, 63, seeds))
    np.testing.assert_array_equal(bits(2**40, 9, seeds)[4:], bits(2**40 + 4, 5, seeds))


@pytest.mark.parametrize("seeds", SEEDS)
def test_every_byte_is_as_frequent_as_another(bits, seeds):
    words = bits(0, COUNT, seeds)
    for place in range(8):
        counts = np.bincount(bytes_of(words).reshape(-1, 8)[:, place], minlength=256)
        assert 1e-5 < stats.chisquare(counts).pvalue < 1 - 1e-5


def assert_independent(one, other):
    """Each bit of one stream agrees with each of the other half the time."""
    one, other = (np.unpackbits(bytes_of(words).reshape(-1, 8), axis=1) for words in (one, other))
    products = (2.0 * one - 1).T @ (2.0 * other - 1) / len(one)
    assert np.abs(products).max() < 5 / math.sqrt(len(one))


@pytest.mark.parametrize("lag", [1, 2, 64, 1024])
def test_samples_are_independent(bits, lag):
    words = bits(0, COUNT, SEEDS[0])
    assert_independent(words[:-lag], words[lag:])


@pytest.mark.parametrize("seeds", SEEDS[1:])
def test_calls_and_batches_are_independent(bits, seeds):
    assert_independent(bits(0, COUNT, SEEDS[0]), bits(0, COUNT, seeds))


def drawn(function):
    with keras_internals.drawing_by(PlacedDraws(0, COUNT)):
        return ops.convert_to_numpy(function())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(rate):
    kept = drawn(lambda: keras.random.dropout(ops.ones((COUNT,)), rate, seed=3)) > 0
    assert abs(np.mean(kept) - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / COUNT)
    found = drawn(lambda: keras.random.dropout(ops.ones((COUNT,)), rate, seed=3))
    np.testing.assert_allclose(found[kept], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("draw", "distribution"),
    [
        (keras.random.uniform, stats.uniform()),
        (keras.random.normal, stats.norm()),
        (keras.random.truncated_normal, stats.truncnorm(-2, 2)),
    ],
    ids=["uniform", "normal", "truncated_normal"],
)
def test_numbers_are_distributed_as_they_should_be(draw, distribution, dtype):
    found = drawn(lambda: ops.cast(draw((COUNT,), dtype=dtype, seed=5), "float64"))
    assert np.isfinite(found).all()
    low, high = distribution.support()
    assert low <= found.min()
    assert found.max() <= high
    # Narrow dtypes round: their distribution has steps.
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 0.0)
    distance = stats.kstest(found, distribution.cdf).statistic
    assert distance < 2.5 / math.sqrt(COUNT) + step


@pytest.mark.parametrize(("low", "high"), [(0, 10), (-5, 3), (0, 2**31), (-(2**40), 2**41)])
def test_integers_are_as_frequent_as_one_another(low, high):
    found = drawn(lambda: keras.random.randint((COUNT,), low, high, "int64", seed=5))
    assert low <= found.min()
    assert found.max() < high
    bins = min(high - low, 64)
    counts = np.bincount((found - low) * bins // (high - low), minlength=bins)
    assert 1e-5 < stats.chisquare(counts).pvalue < 1 - 1e-5


def test_the_largest_words_make_numbers_that_are_finite(monkeypatch):
    import torch

    edges = torch.tensor([2**63 - 1, -(2**63), 0, -1, 2**31 - 1, -(2**31)])
    monkeypatch.setattr(draws, "stream", lambda *_: edges[None])
    for dtype in ("float32", "float64"):
        count = 12 if dtype == "float32" else 6
        for draw in (keras.random.normal, keras.random.truncated_normal, keras.random.uniform):
            found = drawn(lambda draw=draw, dtype=dtype, n=count: draw((n,), dtype=dtype, seed=1))
            assert np.isfinite(found).all()
            assert not (draw is keras.random.uniform and (found >= 1).any())
