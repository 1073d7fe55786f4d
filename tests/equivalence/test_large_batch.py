"""K micro-batches of any sizes make the weights of one large batch, for every inner optimizer."""

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tests.driver import Driver
from tests.marks import first_but, thorough_but
from tests.references.regression import Regression

UPDATES = 50
BATCH = 24
SPLITS = {  # sizes of the micro-batches of a window
    1: (24,),
    3: (12, 5, 7),
    8: (1, 4, 2, 6, 3, 3, 4, 1),
}


def schedule():
    return keras.optimizers.schedules.PiecewiseConstantDecay([5, 20], [0.05, 0.02, 0.01])


def ema(**kwargs):
    return keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.9, **kwargs)


INNER = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.02),
    "adamw": lambda: keras.optimizers.AdamW(0.02, weight_decay=0.1),
    "lion": lambda: keras.optimizers.Lion(0.005),
    "adafactor": lambda: keras.optimizers.Adafactor(0.05),
    "muon": lambda: keras.optimizers.Muon(0.02),
}
OPTIONS = {
    "clipnorm": lambda: keras.optimizers.SGD(0.05, momentum=0.9, clipnorm=0.1),
    "global_clipnorm": lambda: keras.optimizers.Adam(0.02, global_clipnorm=0.1),
    "clipvalue": lambda: keras.optimizers.SGD(0.05, momentum=0.9, clipvalue=0.02),
    "weight_decay": lambda: keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1),
    "schedule": lambda: keras.optimizers.SGD(schedule(), momentum=0.9),
    "ema": ema,
    "ema_overwrite": lambda: ema(ema_overwrite_frequency=7),
}


def trajectory(driver, problem, sizes, with_mass):
    """Return the weights after each update on batches split into micro-batches of `sizes`."""
    weights = []
    for update in range(UPDATES):
        order = np.random.default_rng(update).permutation(len(problem.x))[:BATCH]
        for samples in np.split(order, np.cumsum(sizes)[:-1]):
            gradients = problem.gradients(driver.weights, samples)
            driver.apply(gradients, len(samples) if with_mass else None)
        weights.append(np.concatenate([weight.ravel() for weight in driver.weights]))
    return np.array(weights)


EVERYWHERE = ["momentum", "adamw", "muon", "ema", "global_clipnorm"]


def assert_equals_large_batch(make_inner, dtype, tolerance):
    problem = Regression(samples=60)
    whole = Driver(make_inner(), problem.weights, dtype)
    expected = trajectory(whole, problem, (BATCH,), with_mass=False)
    driver = Driver(RangerOptimizer(inner=make_inner()), problem.weights, dtype, masses=True)
    for steps, sizes in SPLITS.items():
        driver.restart()
        driver.optimizer.accumulation_steps = steps
        actual = trajectory(driver, problem, sizes, with_mass=True)
        np.testing.assert_allclose(
            actual, expected, rtol=tolerance, atol=tolerance, err_msg=f"{steps=}"
        )
        assert int(driver.optimizer.iterations) == UPDATES
    slots = zip(driver.optimizer.inner_optimizer.variables, whole.optimizer.variables, strict=True)
    for actual, expected in slots:
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(actual.value),
            keras.ops.convert_to_numpy(expected.value),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("inner", first_but(EVERYWHERE, [*INNER, *OPTIONS]))
def test_float64(inner, float64):
    tolerance = 1e-6 if keras.config.backend() == "torch" else 1e-10
    assert_equals_large_batch({**INNER, **OPTIONS}[inner], float64, tolerance)


@pytest.mark.parametrize("inner", thorough_but(["momentum", "adamw"], [*INNER, *OPTIONS]))
def test_float32(inner):
    assert_equals_large_batch({**INNER, **OPTIONS}[inner], "float32", 1e-5)
