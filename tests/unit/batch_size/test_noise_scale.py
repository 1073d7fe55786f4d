"""The noise scale against a twin that keeps every window, and against known covariances."""

import functools
import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.batch_size.noise_scale import NoiseEstimate
from tests.marks import first
from tests.references import noise_scale as reference

GRADIENT = np.linspace(-0.3, 0.5, 20)
DEVIATIONS = np.linspace(0.5, 1.5, 20)  # of a sample's gradient
SCALE = (DEVIATIONS**2).sum() / (GRADIENT @ GRADIENT)


def random_windows(count, seed, gradient=GRADIENT, uneven=True):
    """Return pairs ``(gradients, samples)`` of windows with Gaussian noise of `DEVIATIONS`."""
    generator = np.random.default_rng(seed)
    windows = []
    for _ in range(count):
        size = generator.integers(2, 7) if uneven else 4
        samples = generator.integers(1, 12, size) if uneven else np.full(size, 8)
        noise = generator.normal(size=(size, len(DEVIATIONS)))
        windows.append((gradient + noise * DEVIATIONS / np.sqrt(samples)[:, None], samples))
    return windows


@functools.cache
def compiled(memory):
    """Return `updated` as the backend compiles it: thousands of windows would take minutes."""

    def updated(state, squares, window_square, micro_batches, samples):
        return noise_scale.updated(state, squares, window_square, micro_batches, samples, memory)

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(updated)
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(updated)
    return updated


def observe(windows, memory=noise_scale.MEMORY, state=None):
    state = ops.zeros(noise_scale.SIZE) if state is None else state
    for gradients, samples in windows:
        share = samples / samples.sum()
        mean = share @ gradients
        numbers = (share @ (gradients**2).sum(1), mean @ mean, len(samples), samples.sum())
        state = compiled(memory)(state, *(ops.convert_to_tensor(n, "float32") for n in numbers))
    return state


def estimate_of(state) -> Any:
    return NoiseEstimate.of(ops.convert_to_numpy(state))


@pytest.mark.parametrize("memory", [10, 10_000])
def test_estimate_follows_the_twin(memory):
    windows = random_windows(150, seed=1)
    estimate = estimate_of(observe(windows, memory))
    expected = reference.estimate([reference.window(*each) for each in windows], memory)
    got = (estimate.scale, estimate.low, estimate.high, estimate.effective_batch)
    high = min(estimate.high, 1e9)
    np.testing.assert_allclose((*got[:2], high, got[3]), expected, rtol=2e-4)
    assert estimate.windows == 150


@first
def test_estimate_is_unbiased_and_its_range_covers_the_truth():
    """2,000 windows are within 5 %; of 60 ranges of 50 windows about 57 cover."""
    estimate = estimate_of(observe(random_windows(2000, seed=2), memory=2000))
    assert estimate.scale == pytest.approx(SCALE, rel=0.05)
    assert estimate.low < SCALE < estimate.high
    assert estimate.high - estimate.low < 0.2 * SCALE
    parts = [estimate_of(observe(random_windows(50, seed=100 + seed))) for seed in range(60)]
    assert 52 <= sum(part.low < SCALE < part.high for part in parts) <= 60


def test_scale_does_not_depend_on_the_units_of_the_gradient():
    windows = random_windows(50, seed=3)
    expected = estimate_of(observe(windows))
    for factor in (1e-12, 1e12):
        scaled = [(gradients * factor, samples) for gradients, samples in windows]
        assert estimate_of(observe(scaled)).scale == pytest.approx(expected.scale, rel=1e-3)
        assert estimate_of(observe(scaled)).low == pytest.approx(expected.low, rel=1e-3)


@pytest.mark.parametrize(
    ("squares", "window_square", "micro_batches", "samples"),
    [
        (1.0, 1.0, 1, 8),
        (np.nan, 1.0, 4, 8),
        (np.inf, 1.0, 4, 8),
        (1.0, np.nan, 4, 8),
        (0.0, 0.0, 4, 8),
        (1.0, 1.0, 4, 0),
    ],
    ids=["one micro-batch", "nan", "infinity", "nan in the mean", "no gradient", "no samples"],
)
def test_a_window_that_tells_nothing_changes_nothing(
    squares, window_square, micro_batches, samples
):
    for state in (ops.zeros(noise_scale.SIZE), observe(random_windows(5, seed=4))):
        after = noise_scale.updated(state, squares, window_square, micro_batches, samples)
        np.testing.assert_array_equal(ops.convert_to_numpy(after), ops.convert_to_numpy(state))


def test_nothing_is_known_before_the_first_window_and_no_range_after_one():
    assert estimate_of(ops.zeros(noise_scale.SIZE)) is None
    estimate = estimate_of(observe(random_windows(1, seed=5)))
    assert (estimate.low, estimate.high) == (0.0, math.inf)


def test_a_gradient_behind_its_noise_has_no_upper_end():
    estimate = estimate_of(observe(random_windows(40, seed=6, gradient=0 * GRADIENT)))
    assert estimate.high == math.inf
    assert estimate.low > 10


def test_noise_free_gradients_have_scale_0():
    gradients = np.tile(GRADIENT, (3, 1))
    estimate = estimate_of(observe([(gradients, np.array([4, 4, 4]))] * 5))
    assert estimate.scale == pytest.approx(0.0, abs=1e-5)
    assert float(noise_scale.micro_batches_for(observe([(gradients, np.full(3, 4))]), 64)) == 1


def test_micro_batches_make_a_batch_of_the_scale():
    windows = random_windows(500, seed=7, gradient=0.5 * GRADIENT, uneven=False)
    state = observe(windows, memory=500)
    wanted = round(estimate_of(state).scale / 8)
    assert wanted > 2
    assert float(noise_scale.micro_batches_for(state, 64)) == wanted
    assert float(noise_scale.micro_batches_for(state, 2)) == 2
    hidden = observe(random_windows(3, seed=8, gradient=0 * GRADIENT), memory=500)
    assert float(noise_scale.micro_batches_for(hidden, 64)) > 2


def test_predicted_costs_are_those_of_the_paper():
    """Updates go as 1 + scale / batch, samples as batch + scale (equation 2.11)."""
    estimate = NoiseEstimate(scale=320.0, low=300.0, high=340.0, effective_batch=2048.0, windows=9)
    assert estimate.updates_with(320) == pytest.approx(2 / (1 + 320 / 2048))
    assert estimate.samples_with(320) == pytest.approx((320 + 320) / (2048 + 320))
    assert estimate.updates_with(2048) == 1.0
    in_micro_batches = NoiseEstimate(10.0, 9.0, 11.0, 64.0, 9)
    assert in_micro_batches.times(32) == estimate.times(1).__class__(320.0, 288.0, 352.0, 2048.0, 9)


@pytest.mark.parametrize("problem", ["means", "regression"])
def test_half_of_an_updates_gain_is_lost_at_the_noise_scale(problem):
    """The advice is right where the critical batch is known: the expected gain of the best step.

    Both problems have the Hessian 1, so an update along G of the best length gains
    (G.g)^2 / (2 |G|^2) of the loss on average at most, and at B = scale half of |g|^2 / 2.
    """
    generator = np.random.default_rng(9)
    dimensions, distance = 30, np.full(30, 0.1)

    def sample_gradients(count):
        x = generator.normal(size=(count, dimensions))
        if problem == "means":  # loss |w - x|^2 / 2
            return distance - x
        target = generator.normal(size=count)  # loss (x.w - target)^2 / 2
        return x * (x @ distance - target)[:, None]

    square = distance @ distance
    known = dimensions / square
    if problem == "regression":
        known = dimensions + 1 + known
    windows = [
        (sample_gradients(64 * 4).reshape(4, 64, -1).mean(1), np.full(4, 64)) for _ in range(800)
    ]
    scale = estimate_of(observe(windows, memory=800)).scale
    assert scale == pytest.approx(known, rel=0.1)
    gradients = np.stack([sample_gradients(round(scale)).mean(0) for _ in range(400)])
    # With one step length for all, as an optimizer has: the best is E G.g / E |G|^2.
    gain = (gradients @ distance).mean() ** 2 / (gradients**2).sum(1).mean() / square
    assert gain == pytest.approx(0.5, rel=0.05)
