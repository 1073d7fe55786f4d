"""The Ranger family against twins in float64, other settings than the golden ones."""

from typing import Any, cast

import keras
import numpy as np
import pytest

from tensorflow_ranger.optimizers.radam import RAdam
from tensorflow_ranger.optimizers.ranger import Ranger
from tensorflow_ranger.optimizers.ranger21 import Ranger21
from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer
from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping
from tensorflow_ranger.rules.lookahead import Lookahead
from tests.driver import Driver
from tests.marks import first_but
from tests.references.ranger_family import RAdamTwin, Ranger21Twin

UPDATES = 100
SHAPES = ((3, 3, 2, 4), (4, 5), (5,), (6, 3))
FAN_IN = ((0, 1, 2), (0,), (), ())  # a convolution, a dense layer, its bias, an embedding
TOLERANCE = 1e-11
ALL_OF_RANGER21 = {
    "learning_rate": 0.03,
    "total_updates": 90,
    "beta_1": 0.8,
    "beta_2": 0.98,
    "epsilon": 1e-6,
    "weight_decay": 0.05,
    "positive_negative": 0.7,
    "paper_noise_norm": False,
    "norm_loss": 0.02,
    "softplus": 30.0,
    "normalize": True,
    "adaptive_clipping": (0.05, 1e-2),
    "centralize": True,
    "lookahead": (7, 0.3),
    "warm_up_updates": 25,
    "warm_down_start": 0.6,
    "least_learning_rate": 0.002,
}


def draws(seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, 0.5, shape) for shape in SHAPES]
    scales = np.exp(rng.normal(size=UPDATES))
    gradients = [[scale * rng.normal(0.3, 1, shape) for shape in SHAPES] for scale in scales]
    return weights, gradients


def tagged_driver(optimizer, weights, dtype="float64"):
    driver = Driver(optimizer, weights, dtype)
    for variable, axes in zip(driver.variables, FAN_IN, strict=True):
        variable.fan_in_axes = axes
    return driver


def assert_follows(optimizer, twin, steps=1):
    """Compare after every update; with `steps` parts of each gradient, whose mean it is."""
    weights, gradients = draws()
    driver = tagged_driver(optimizer, weights)
    shift = [np.full(shape, 0.1) for shape in SHAPES]
    for update in gradients:
        for part in range(steps):
            sign = part - (steps - 1) / 2
            driver.apply([g + sign * s for g, s in zip(update, shift, strict=True)])
        twin.apply(update)
        for actual, expected in zip(driver.weights, twin.weights, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.02, "beta_1": 0.7, "beta_2": 0.95, "epsilon": 1e-3},
        {"learning_rate": 0.01, "beta_1": 0.0, "beta_2": 0.7, "weight_decay": 0.125},
        {"learning_rate": 0.01, "beta_2": 0.9999},
    ],
)
def test_radam(settings, float64):
    none = [()] * len(SHAPES)
    assert_follows(RAdam(**settings), RAdamTwin(draws()[0], none, **settings))


@pytest.mark.parametrize("steps", [1, 3])
def test_ranger(steps, float64):
    settings = {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-4}
    settings["weight_decay"] = 0.03125  # Keras rounds it to float32 on TensorFlow
    optimizer = Ranger(lookahead=Lookahead(4, 0.8), **cast(Any, settings))
    if steps > 1:
        optimizer = RangerOptimizer(inner=optimizer, accumulation_steps=steps)
    twin = RAdamTwin(draws()[0], FAN_IN, lookahead=(4, 0.8), **settings)
    assert_follows(optimizer, twin, steps)


def ranger21(settings):
    settings = dict(settings)
    if settings["lookahead"] is not None:
        settings["lookahead"] = Lookahead(*settings["lookahead"])
    if settings["adaptive_clipping"] is not None:
        settings["adaptive_clipping"] = AdaptiveGradientClipping(*settings["adaptive_clipping"])
    if settings["warm_up_updates"] is None:
        settings["warm_up"] = False
    if settings["total_updates"] is None:
        settings["warm_down"] = False
    return Ranger21(**settings)


SWITCHED_OFF: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.0},
    {"positive_negative": None},
    {"positive_negative": 0.0},
    {"paper_noise_norm": True},
    {"norm_loss": 0.0},
    {"softplus": None},
    {"normalize": False},
    {"adaptive_clipping": None},
    {"centralize": False},
    {"lookahead": None},
    {"warm_up_updates": None},
    {"total_updates": None},
]


@pytest.mark.parametrize(
    "change",
    first_but(SWITCHED_OFF[:1], SWITCHED_OFF),
    ids=lambda change: ", ".join(f"{key}={value}" for key, value in change.items()) or "all",
)
def test_ranger21_with_each_part_switched_off(change, float64):
    settings = {**ALL_OF_RANGER21, **change}
    assert_follows(ranger21(settings), Ranger21Twin(draws()[0], FAN_IN, **settings))


def test_ranger21_counts_updates_in_windows(float64):
    optimizer = RangerOptimizer(inner=ranger21(ALL_OF_RANGER21), accumulation_steps=3)
    assert_follows(optimizer, Ranger21Twin(draws()[0], FAN_IN, **ALL_OF_RANGER21), 3)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-10, 1e-8])
def test_ranger21_survives_gradients_that_vanish(size, normalize):
    weights, _ = draws()
    optimizer = ranger21({**ALL_OF_RANGER21, "normalize": normalize, "learning_rate": 1e-3})
    driver = tagged_driver(optimizer, weights, "float32")
    driver.apply([np.full(shape, size) for shape in SHAPES])
    for weight, before in zip(driver.weights, weights, strict=True):
        assert np.abs(weight).max() <= np.abs(before).max() + 0.1


def test_radam_rectifies_at_update_6_in_float32():
    # With gradients of one sign and size, momentum steps are the gradient's size, others are not.
    driver = Driver(RAdam(1e-3, beta_2=0.9999), [np.zeros(1)])
    sizes = []
    for _ in range(12):
        before = driver.weights[0]
        driver.apply([np.full(1, 100.0)])
        sizes.append(float((before - driver.weights[0])[0]))
    np.testing.assert_allclose(sizes[:5], 0.1, rtol=1e-5)
    assert max(sizes[5:]) < 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", [RAdam, Ranger, lambda: Ranger21(total_updates=50)])
def test_state_of_narrow_variables_is_float32(make, dtype):
    driver = tagged_driver(make(), draws()[0], dtype)
    slots = [v for v in driver.optimizer.variables if len(v.shape) > 0]
    assert {keras.backend.standardize_dtype(v.dtype) for v in slots} == {"float32"}
    for update in draws()[1][:3]:
        driver.apply(update)
    assert all(np.isfinite(weight).all() for weight in driver.weights)


@pytest.mark.parametrize("name", ["beta_1", "epsilon"])
def test_arguments_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be a.*number.*got -1"):
        RAdam(**cast(Any, {name: -1}))


@pytest.mark.parametrize("beta_2", [-0.1, 0.6, 2 / 3, 1.0])
def test_a_beta_2_that_never_rectifies_is_refused(beta_2):
    with pytest.raises(ValueError, match=r"expected 2/3 < beta_2 < 1"):
        Ranger(beta_2=beta_2)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"RAdam does not accumulate by itself: got.*=4"):
        RAdam(gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match=r"warm_down needs total_updates: got None"):
        Ranger21()
    with pytest.raises(ValueError, match=r"total_updates must be an integer >= 1: got 0"):
        Ranger21(total_updates=0)
    with pytest.raises(TypeError, match=r"lookahead must be a Lookahead or None: got 5"):
        Ranger(lookahead=cast(Any, 5))
    with pytest.raises(TypeError, match=r"adaptive_clipping must be a.*got 0\.1"):
        Ranger21(total_updates=9, adaptive_clipping=cast(Any, 0.1))
    with pytest.raises(ValueError, match=r"evaluate_slow_weights needs slow weights"):
        RangerOptimizer(evaluate_slow_weights=True)
    for k, alpha, message in ((0, 0.5, "k must be"), (5, 0.0, "alpha must be"), (5, 2, "alpha")):
        with pytest.raises(ValueError, match=message):
            Lookahead(k, alpha)
    with pytest.raises(ValueError, match=r"clipping must be a number > 0: got 0"):
        AdaptiveGradientClipping(0)
