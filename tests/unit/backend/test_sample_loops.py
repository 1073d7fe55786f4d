"""A loop over samples that a step has sorted by length, or Python has divided."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.rules.division import division
from tensorflow_ranger.training.padding import Padding
from tensorflow_ranger.training.sorted_samples import SortedSamples

BACKEND = keras.config.backend()
if BACKEND == "torch":
    pytest.skip("PyTorch's processes cut their samples in Python", allow_module_level=True)

STEPS = 10
MOST = 4 if BACKEND == "jax" else None


def compiled(function, x):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)(x)
    import tensorflow as tf

    return tf.function(function, autograph=False)(tf.constant(x))


def looped(x, size, is_divided=False):
    """Return what a loop has seen: of each sample its sum, its neighbours and its steps."""
    if BACKEND == "jax":
        from tensorflow_ranger.backend.jax.sample_loops import fold_samples
    else:
        from tensorflow_ranger.backend.tensorflow.sample_loops import fold_samples
    ops = keras.ops
    words = keras.Input((None,), dtype="int32")
    model = keras.Model(words, keras.layers.Embedding(9, 2, mask_zero=True)(words))
    padding = Padding(model, 0, MOST is not None)

    rows = len(x)

    table = padding.table((x, None, None), size) if is_divided else None

    def run(x):
        samples = SortedSamples(padding, x, [STEPS], MOST)
        if is_divided:
            samples = padding.sorted((x, None, None), ops.convert_to_tensor(table))
        nothing = ops.zeros((rows,), "int32")

        def see(state, each):
            part = each.data[0]
            seen = [
                ops.sum(part, axis=1),
                ops.ones_like(each.places) * each.places[-1],
                ops.ones_like(each.places) * ops.shape(part)[1],
                ops.ones_like(each.places),
            ]
            indices = ops.expand_dims(each.places, 1)
            return [
                total + ops.scatter(indices, ops.cast(own, "int32"), (rows,))
                for total, own in zip(state, seen, strict=True)
            ]

        return fold_samples(see, [nothing] * 4, (x, None, None), None, size, samples)

    return [keras.ops.convert_to_numpy(each) for each in compiled(run, x)]


def padded(samples):
    """Return the lengths of random samples, and the samples with zeros behind them."""
    rng = np.random.default_rng(samples)
    lengths = rng.integers(1, STEPS + 1, samples)
    x = rng.integers(1, 9, (samples, STEPS)) * (np.arange(STEPS) < lengths[:, None])
    return lengths, x.astype("int32")


@pytest.mark.parametrize("samples", [3, 4, 11, 12, 0])
def test_each_sample_is_seen_once_without_most_of_its_padding(samples):
    size = 4
    lengths, x = padded(samples)
    sums, last, steps, times = looped(x, size)
    np.testing.assert_array_equal(times, 1)
    np.testing.assert_array_equal(sums, x.sum(axis=1))
    unit = 1 if MOST is None else -(-STEPS // MOST)
    rounded = np.minimum(-(-lengths // unit) * unit, STEPS)
    # The longest come first: the k-th micro-batch is as long as sample k * size in that order.
    expected = np.sort(rounded)[::-1][(np.arange(samples) // size) * size]
    np.testing.assert_array_equal(np.sort(steps)[::-1], np.sort(expected)[::-1])
    assert (steps >= lengths).all()
    # The samples of a micro-batch are in the order of the batch.
    assert (last >= np.arange(samples)).all()


@pytest.mark.skipif(BACKEND == "jax", reason="XLA would compile each number of micro-batches")
@pytest.mark.parametrize("samples", [3, 4, 11, 12])
def test_a_loop_runs_the_micro_batches_of_a_division(samples):
    size = 4
    lengths, x = padded(samples)
    sums, last, steps, times = looped(x, size, is_divided=True)
    np.testing.assert_array_equal(times, 1)
    np.testing.assert_array_equal(sums, x.sum(axis=1))
    start = 0
    for count in division(-np.sort(-lengths)[:, None], size, np.array([STEPS])):
        own = np.argsort(-lengths, kind="stable")[start : start + count]
        np.testing.assert_array_equal(last[own], own.max())
        np.testing.assert_array_equal(steps[own], lengths[own].max())
        start += count
    assert start == samples
