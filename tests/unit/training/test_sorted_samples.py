"""Samples that a step sorts by their lengths, against NumPy."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.training.padding import Padding
from tensorflow_ranger.training.sorted_samples import SortedSamples
from tests.marks import first

SAMPLES, SIZES = 40, (5, 16)
VALUE = -1.0


@pytest.fixture
def padding():
    """A `Padding` of a model with a time axis in words, and one in frames of three numbers."""
    words, frames = keras.Input((None,)), keras.Input((None, 3))
    pooled = [
        keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 3)(words)),
        keras.layers.GlobalAveragePooling1D()(frames),
    ]
    return Padding(keras.Model([words, frames], keras.layers.Add()(pooled)), VALUE, False)


def batch(seed):
    """Return inputs and the steps of each sample; one has not a real step in either."""
    rng = np.random.default_rng(seed)
    lengths = np.stack([rng.integers(1, size + 1, SAMPLES) for size in SIZES], axis=1)
    lengths[7] = 0
    words, frames = (np.arange(size) < lengths[:, [i]] for i, size in enumerate(SIZES))
    x = [
        np.where(words, rng.integers(0, 9, words.shape), VALUE).astype("float32"),
        np.where(frames[..., None], rng.normal(size=(*frames.shape, 3)), VALUE).astype("float32"),
    ]
    x[1][3, :, 0] = VALUE  # a step is padding where all its numbers are
    lengths[7] = SIZES
    return x, lengths


@first
@pytest.mark.parametrize("seed", range(5))
def test_samples_come_longest_first(padding, seed):
    x, lengths = batch(seed)
    found = SortedSamples(padding, x, list(SIZES))
    order = keras.ops.convert_to_numpy(found.order)
    assert sorted(order) == list(range(SAMPLES))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(found.lengths), lengths[order])
    assert (np.diff(lengths[order].sum(axis=1)) <= 0).all()


@first
@pytest.mark.parametrize("most", [1, 4, 8])
def test_lengths_are_rounded_up_to_a_few(padding, most):
    x, lengths = batch(0)
    found = SortedSamples(padding, x, list(SIZES), most)
    order = keras.ops.convert_to_numpy(found.order)
    rounded = keras.ops.convert_to_numpy(found.lengths)
    assert len(found.choices) <= most
    assert found.choices[0] == SIZES
    choices = np.array(found.choices)
    assert (np.diff(choices.sum(axis=1)) < 0).all()
    for steps, least in zip(rounded, lengths[order], strict=True):
        # The smallest choice that has room for the sample.
        expected = choices[(choices >= least).all(axis=1)][-1]
        np.testing.assert_array_equal(steps, expected)


@first
def test_cells_are_those_of_the_longest_of_each_micro_batch(padding):
    x, lengths = batch(0)
    lengths = lengths[np.argsort(-lengths.sum(axis=1), kind="stable")]
    expected = 0
    for start in range(0, SAMPLES, 7):
        part = lengths[start : start + 7]
        expected += len(part) * part.max(axis=0).sum()
    # Samples as long as each other may come in another order.
    cells = SortedSamples(padding, x, list(SIZES)).cells(7)
    assert abs(cells - expected) <= 0.05 * expected
    assert cells < SAMPLES * sum(SIZES)
