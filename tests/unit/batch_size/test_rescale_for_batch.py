"""Each rule by hand, what it keeps by simulation, and what it leaves alone."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger import RangerOptimizer
from tensorflow_ranger.batch_size.rescale_for_batch import ScaledSchedule, rescale_for_batch
from tests.marks import needs_multi_optimizer

ADAM_LIKE = ["Adam", "AdamW", "Nadam", "Adamax", "Lamb"]
SMALL_STEPS = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5)


def assert_changed(optimizer, rescaled, expected):
    """Assert that the configs differ in `expected` and in nothing else."""
    before, after = optimizer.get_config(), rescaled.get_config()
    assert type(rescaled) is type(optimizer)
    assert after.keys() == before.keys()
    for name, value in after.items():
        if name in expected:
            np.testing.assert_allclose(value, expected[name], rtol=1e-12, err_msg=name)
        else:
            assert value == before[name], name


def gradient_of(value):
    return [ops.convert_to_tensor([value], "float64")]


# ----------------------------------------------------------------------------- values by hand


@pytest.mark.parametrize("name", ADAM_LIKE)
def test_square_root_rule_of_adam(name, float64):
    make = getattr(keras.optimizers, name)
    optimizer = make(0.001, beta_1=0.9, beta_2=0.99, epsilon=1e-7, weight_decay=0.01, clipnorm=2.0)
    smaller = rescale_for_batch(optimizer, 256, 64)
    expected = {"learning_rate": 0.0005, "beta_1": 0.975, "beta_2": 0.9975, "epsilon": 2e-7}
    assert_changed(optimizer, smaller, expected)
    larger = rescale_for_batch(optimizer, 256, 1024, rule="sqrt")
    expected = {"learning_rate": 0.002, "beta_1": 0.6, "beta_2": 0.96, "epsilon": 5e-8}
    assert_changed(optimizer, larger, expected)


def test_square_root_rule_of_rmsprop(float64):
    optimizer = keras.optimizers.RMSprop(0.001, rho=0.9, momentum=0.5, epsilon=1e-7, centered=True)
    smaller = rescale_for_batch(optimizer, 256, 64)
    # Keras adds this epsilon to the square, not to its root.
    assert_changed(optimizer, smaller, {"learning_rate": 0.0005, "rho": 0.975, "epsilon": 4e-7})


def test_square_root_rule_of_sgd_is_for_the_learning_rate_alone(float64):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    assert_changed(optimizer, rescale_for_batch(optimizer, 32, 128), {"learning_rate": 0.2})


@pytest.mark.parametrize("name", [*ADAM_LIKE, "SGD", "RMSprop", "Lion", "Adagrad", "Adafactor"])
def test_linear_rule_is_for_the_learning_rate_alone(name, float64):
    optimizer = getattr(keras.optimizers, name)(0.1, use_ema=True, ema_momentum=0.9)
    rescaled = rescale_for_batch(optimizer, 32, 80, rule="linear")
    assert_changed(optimizer, rescaled, {"learning_rate": 0.25})


@pytest.mark.parametrize("name", ADAM_LIKE)
def test_half_life_rule_is_for_beta_2_alone(name, float64):
    optimizer = getattr(keras.optimizers, name)(0.1, beta_2=0.81, weight_decay=0.01)
    assert_changed(optimizer, rescale_for_batch(optimizer, 32, 16, "half-life"), {"beta_2": 0.9})
    assert_changed(optimizer, rescale_for_batch(optimizer, 32, 64, "half-life"), {"beta_2": 0.6561})


@pytest.mark.parametrize("to_batch", [8, 128])
def test_a_beta_of_zero_averages_nothing_and_stays(to_batch):
    optimizer = keras.optimizers.Adam(beta_1=0.0)
    rescaled = rescale_for_batch(optimizer, 32, to_batch)
    assert rescaled.beta_1 == 0
    assert rescaled.beta_2 == pytest.approx(1 - to_batch / 32 * 0.001, abs=1e-15)


@pytest.mark.parametrize("rule", ["sqrt", "linear", "half-life"])
@pytest.mark.parametrize("name", ADAM_LIKE)
def test_there_and_back(name, rule, float64):
    optimizer = getattr(keras.optimizers, name)(0.0003, beta_1=0.95, beta_2=0.985, epsilon=3e-8)
    for batch in (1, 3, 100):
        there = rescale_for_batch(optimizer, 24, batch, rule)
        back = rescale_for_batch(there, batch, 24, rule)
        expected = {"learning_rate": 0.0003, "beta_1": 0.95, "beta_2": 0.985, "epsilon": 3e-8}
        assert_changed(optimizer, back, expected)


@pytest.mark.parametrize("rule", ["sqrt", "linear", "half-life"])
def test_the_same_batch_changes_nothing(rule):
    optimizer = keras.optimizers.Adam(0.0003, beta_1=0.91, weight_decay=0.1)
    rescaled = rescale_for_batch(optimizer, 24, 24, rule)
    assert rescaled.get_config() == optimizer.get_config()


# ------------------------------------------------------------------------- what each rule keeps


def adam_moments(config, batch, samples, noise, drift, second_moment):
    """Return mean and variance of Adam's weight after `samples` samples, in float64.

    The gradient of a batch is `drift` plus white noise of variance ``noise ** 2 / batch``, which
    outweighs it in the second moment. The mean and the covariance of (weight, momentum) then obey
    a linear recursion, and nothing need be drawn.
    """
    beta_1, beta_2 = config["beta_1"], config["beta_2"]
    variance = noise**2 / batch
    mean, covariance, v = np.zeros(2), np.zeros((2, 2)), second_moment / batch
    for _ in range(samples // batch):
        v = beta_2 * v + (1 - beta_2) * variance
        step = config["learning_rate"] / (math.sqrt(v) + config["epsilon"])
        # m <- beta_1 m + (1 - beta_1) g, then w <- w - step m
        transition = np.array([[1.0, -step * beta_1], [0.0, beta_1]])
        inflow = (1 - beta_1) * np.array([-step, 1.0])
        mean = transition @ mean + inflow * drift
        covariance = transition @ covariance @ transition.T + np.outer(inflow, inflow) * variance
    return mean[0], covariance[0, 0]


@pytest.mark.parametrize("to_batch", [8, 64])
def test_square_root_rule_keeps_drift_and_diffusion_of_adam(to_batch, float64):
    # An epsilon as large as the root of the second moment, that its rule be seen.
    optimizer = keras.optimizers.Adam(0.01, beta_1=0.9992, beta_2=0.9998, epsilon=0.4)
    rescaled = rescale_for_batch(optimizer, 16, to_batch)
    problem = {"samples": 16 * 5_000, "noise": 2.0, "drift": 0.05, "second_moment": 20.0}
    expected = adam_moments(optimizer.get_config(), 16, **problem)
    actual = adam_moments(rescaled.get_config(), to_batch, **problem)
    # The equation is the limit of small steps: what is left is of order kappa (1 - beta).
    np.testing.assert_allclose(actual, expected, rtol=3e-3)


@pytest.mark.parametrize("name", ["learning_rate", "beta_1", "beta_2", "epsilon"])
def test_square_root_rule_needs_each_of_its_settings(name, float64):
    optimizer = keras.optimizers.Adam(0.01, beta_1=0.9992, beta_2=0.9998, epsilon=0.4)
    config = rescale_for_batch(optimizer, 16, 64).get_config()
    config[name] = optimizer.get_config()[name]
    problem = {"samples": 16 * 5_000, "noise": 2.0, "drift": 0.05, "second_moment": 20.0}
    expected = adam_moments(optimizer.get_config(), 16, **problem)
    actual = adam_moments(config, 64, **problem)
    assert np.max(np.abs(np.divide(actual, expected) - 1)) > 0.03


@pytest.mark.parametrize("name", ["Adam", "Nadam", "Adamax", "RMSprop"])
def test_square_root_rule_fits_where_keras_adds_epsilon(name, float64):
    # An epsilon above everything else makes the optimizer gradient descent, whose displacement
    # per sample is kept: sqrt(kappa) of the rate, sqrt(kappa) of 1 / epsilon.
    betas = {"rho": 0.5} if name == "RMSprop" else {"beta_1": 0.5, "beta_2": 0.5}
    optimizer = getattr(keras.optimizers, name)(0.1, epsilon=1e8, **betas)
    last_steps = []
    for batch in (16, 24):
        rescaled = rescale_for_batch(optimizer, 16, batch)
        weight = keras.Variable(np.zeros(1), dtype="float64")
        values = []
        for _ in range(60):
            rescaled.apply(gradient_of(1.0), [weight])
            values.append(float(ops.convert_to_numpy(weight)[0]))
        last_steps.append((values[-1] - values[-2]) / batch)
    assert last_steps[0] < 0
    # Nadam's momentum still grows a little with the updates; a wrong epsilon is 20 % off.
    np.testing.assert_allclose(last_steps[1], last_steps[0], rtol=1e-3)


@pytest.mark.parametrize("batch", [4, 8, 32, 128, 512])
def test_half_life_rule_keeps_the_weight_of_an_old_square_after_as_many_samples(batch, float64):
    optimizer = keras.optimizers.Adam(beta_2=0.98)
    beta_2 = rescale_for_batch(optimizer, 32, batch, "half-life").beta_2
    v, expected = 1.0, 1.0
    for _ in range(2048 // batch):
        v = beta_2 * v + (1 - beta_2) * 0.0
    for _ in range(2048 // 32):
        expected = 0.98 * expected
    np.testing.assert_allclose(v, expected, rtol=1e-12)


@pytest.mark.parametrize("batch", [4, 16, 64])
def test_linear_rule_keeps_the_displacement_per_sample_of_sgd(batch, float64):
    rescaled = rescale_for_batch(keras.optimizers.SGD(0.1), 16, batch, "linear")
    weight = keras.Variable(np.ones(1), dtype="float64")
    for _ in range(192 // batch):
        rescaled.apply(gradient_of(0.25), [weight])
    np.testing.assert_allclose(ops.convert_to_numpy(weight), 1 - 192 / 16 * 0.1 * 0.25, rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 5, 400])
def test_square_root_rule_keeps_the_variance_of_a_step_of_sgd(batch, float64):
    rescaled = rescale_for_batch(keras.optimizers.SGD(0.1, momentum=0.9), 20, batch)
    learning_rate = rescaled.get_config()["learning_rate"]
    np.testing.assert_allclose(learning_rate**2 / batch, 0.1**2 / 20, rtol=1e-12)


# --------------------------------------------------------------------------------- its limits


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("from_batch", [1, 7, 32, 1000])
def test_the_largest_batch_of_the_square_root_rule(beta, from_batch):
    optimizer = keras.optimizers.Adam(beta_1=beta, beta_2=0.9999)
    # 1 / (1 - beta) is a whole number for these betas, and kappa must stay below it.
    largest = from_batch * round(1 / (1 - beta)) - 1
    rescaled = rescale_for_batch(optimizer, from_batch, largest)
    np.testing.assert_allclose(rescaled.beta_1, (1 - beta) / from_batch, rtol=1e-6)
    with pytest.raises(ValueError, match=rf"no valid beta_1 .* largest to_batch is {largest}\."):
        rescale_for_batch(optimizer, from_batch, largest + 1)


def test_a_batch_too_large_for_a_beta_says_what_to_do():
    with pytest.raises(ValueError, match=r'no valid rho for to_batch=640: got rho=0.9 and .*"line'):
        rescale_for_batch(keras.optimizers.RMSprop(rho=0.9), 32, 640)
    with pytest.raises(ValueError, match=r"no valid beta_2 .* largest to_batch is 3199\."):
        rescale_for_batch(keras.optimizers.Adam(beta_1=0.9999, beta_2=0.99), 32, 3200)


@pytest.mark.parametrize("rule", ["sqrt", "half-life"])
def test_a_beta_that_rounds_to_one_is_refused(rule):
    optimizer = keras.optimizers.Adam(beta_1=0.0, beta_2=0.999)
    rescale_for_batch(optimizer, 10_000, 1, rule)
    with pytest.raises(ValueError, match=r"beta_2 must be less than 1 in float32: got 0\.9999999"):
        rescale_for_batch(optimizer, 100_000, 1, rule)


def test_a_beta_that_rounds_to_one_in_float32_is_fine_in_float64(float64):
    rescaled = rescale_for_batch(keras.optimizers.Adam(), 100_000, 1, "half-life")
    np.testing.assert_allclose(rescaled.beta_2, 0.999**1e-5, rtol=1e-15)


@pytest.mark.parametrize("name", ["Adadelta", "Adafactor", "Adagrad", "Ftrl", "Lion"])
def test_square_root_rule_is_refused_where_nobody_derived_it(name):
    with pytest.raises(ValueError, match=rf"SGD, RMSprop and Adam: got {name}.*linear"):
        rescale_for_batch(getattr(keras.optimizers, name)(), 32, 64)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Lion"])
def test_half_life_rule_is_refused_without_a_second_moments_beta_2(name):
    with pytest.raises(ValueError, match=rf"beta_2 averages squared gradients.* got {name}"):
        rescale_for_batch(getattr(keras.optimizers, name)(), 32, 64, "half-life")


# ---------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 2.0), ("linear", 4.0)])
def test_a_schedule_is_multiplied(rule, factor):
    optimizer = rescale_for_batch(keras.optimizers.SGD(SMALL_STEPS), 32, 128, rule)
    assert float(optimizer.learning_rate) == pytest.approx(0.1 * factor)
    optimizer.iterations.assign(20)
    assert float(optimizer.learning_rate) == pytest.approx(0.025 * factor)


def test_half_life_rule_leaves_a_schedule():
    optimizer = keras.optimizers.Adam(SMALL_STEPS)
    rescaled = rescale_for_batch(optimizer, 32, 128, "half-life")
    assert rescaled.get_config()["learning_rate"] == optimizer.get_config()["learning_rate"]


def test_factors_of_a_schedule_are_one_factor_and_cancel():
    optimizer = keras.optimizers.SGD(SMALL_STEPS)
    twice = rescale_for_batch(rescale_for_batch(optimizer, 32, 96), 96, 64)
    learning_rate = twice.get_config()["learning_rate"]
    assert learning_rate["config"]["schedule"]["class_name"] == "ExponentialDecay"
    assert learning_rate["config"]["factor"] == pytest.approx(math.sqrt(2), rel=1e-14)
    for batch in range(1, 50):  # sqrt(k) * sqrt(1 / k) is not 1 for each of them
        there = rescale_for_batch(optimizer, 32, batch)
        assert rescale_for_batch(there, batch, 32).get_config() == optimizer.get_config()


def test_a_scaled_schedule_is_saved_with_the_optimizer():
    rescaled = rescale_for_batch(keras.optimizers.Adam(SMALL_STEPS), 32, 128)
    loaded = keras.optimizers.deserialize(keras.optimizers.serialize(rescaled))
    assert loaded.get_config() == rescaled.get_config()
    loaded.iterations.assign(10)
    assert float(loaded.learning_rate) == pytest.approx(0.1)


def test_a_schedule_of_ones_own_need_not_be_registered():
    class Halving(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5 ** ops.cast(step, "float32")

        def get_config(self):
            return {}

    for rule, expected in [("linear", 0.5), ("half-life", 0.25)]:
        rescaled = rescale_for_batch(keras.optimizers.Adam(Halving()), 8, 16, rule)
        rescaled.iterations.assign(2)
        assert float(rescaled.learning_rate) == expected


def test_a_function_as_learning_rate_is_refused_where_it_must_be_multiplied():
    optimizer = keras.optimizers.SGD(_learning_rate)
    with pytest.raises(ValueError, match=r"got the function <function _learning_rate.*a schedule"):
        rescale_for_batch(optimizer, 32, 64)
    kept = rescale_for_batch(keras.optimizers.Adam(_learning_rate), 32, 64, "half-life")
    assert float(kept.learning_rate) == 0.5


def _learning_rate():
    return 0.5


def test_fit_and_saving_with_a_scaled_schedule(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    doubled = keras.optimizers.schedules.ExponentialDecay(0.2, decay_steps=10, decay_rate=0.5)
    scaled = rescale_for_batch(keras.optimizers.SGD(SMALL_STEPS), 2, 4, "linear")
    weights = []
    for optimizer in (keras.optimizers.SGD(doubled), scaled):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        weights.append(model.get_weights()[0])
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert float(loaded.learning_rate) == pytest.approx(float(scaled.learning_rate))
    assert float(loaded.learning_rate) == pytest.approx(0.2 * 0.5**0.8)


def test_a_scaled_schedule_has_a_config():
    schedule = ScaledSchedule(SMALL_STEPS, 3)
    again = ScaledSchedule.from_config(schedule.get_config())
    assert again.get_config() == schedule.get_config()
    assert float(again(10)) == pytest.approx(0.15)


# ----------------------------------------------------------------------------------- wrappers


def test_ranger_optimizer_keeps_its_window_around_a_rescaled_inner(float64):
    optimizer = RangerOptimizer(
        0.001, accumulation_steps=8, inner="adam", beta_1=0.8, loss_scale_factor=16.0, name="window"
    )
    rescaled = rescale_for_batch(optimizer, 256, 64)
    before, after = optimizer.get_config(), rescaled.get_config()
    assert {k: v for k, v in after.items() if k != "inner"} == {
        k: v for k, v in before.items() if k != "inner"
    }
    assert after["loss_scale_factor"] == 16.0
    assert rescaled.accumulation_steps == 8
    expected = {"learning_rate": 0.0005, "beta_1": 0.95, "beta_2": 0.99975, "epsilon": 2e-7}
    assert_changed(optimizer.inner_optimizer, rescaled.inner_optimizer, expected)


def test_loss_scale_optimizer_and_what_is_inside_are_both_opened(float64):
    inner = RangerOptimizer(0.1, momentum=0.9, accumulation_steps=2)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    rescaled = rescale_for_batch(optimizer, 32, 16, "linear")
    assert isinstance(rescaled, keras.optimizers.LossScaleOptimizer)
    assert rescaled.initial_scale == 8.0
    assert isinstance(rescaled.inner_optimizer, RangerOptimizer)
    sgd = rescaled.inner_optimizer.inner_optimizer
    assert_changed(inner.inner_optimizer, sgd, {"learning_rate": 0.05})


def test_errors_inside_a_wrapper_name_the_inner_optimizer():
    with pytest.raises(ValueError, match="got SGD"):
        rescale_for_batch(RangerOptimizer(), 32, 64, "half-life")


# ------------------------------------------------------------------ what is given stays as it is


def test_the_optimizer_given_keeps_its_state_and_the_new_one_has_none():
    optimizer = keras.optimizers.Adam(0.01)
    weight = keras.Variable(np.zeros(1))
    optimizer.apply([ops.ones(1)], [weight])
    optimizer.learning_rate = 0.02
    config = optimizer.get_config()
    rescaled = rescale_for_batch(optimizer, 32, 8)
    assert not rescaled.built
    assert int(rescaled.iterations) == 0
    assert optimizer.get_config() == config
    assert int(optimizer.iterations) == 1
    assert float(rescaled.learning_rate) == pytest.approx(0.01)


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_excluded_from_decay_are_not_forgotten_silently(wrapped):
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer = RangerOptimizer(inner=optimizer) if wrapped else optimizer
    with pytest.warns(UserWarning, match="exclude_from_weight_decay is no part of a config"):
        rescale_for_batch(optimizer, 32, 64)


@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.Adam, None])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"must be a keras.optimizers.Optimizer instance: got .*"):
        rescale_for_batch(optimizer, 32, 64)


@pytest.mark.parametrize("batch", [0, -4, 32.0, True, "32", None])
def test_a_batch_that_is_no_positive_integer_is_refused(batch):
    optimizer = keras.optimizers.Adam()
    with pytest.raises(ValueError, match=rf"from_batch must be an integer >= 1: got {batch!r}"):
        rescale_for_batch(optimizer, batch, 32)
    with pytest.raises(ValueError, match=rf"to_batch must be an integer >= 1: got {batch!r}"):
        rescale_for_batch(optimizer, 32, batch)


def test_an_integer_of_numpy_is_a_batch():
    rescaled = rescale_for_batch(keras.optimizers.SGD(0.1), np.int64(32), np.int64(128))
    assert float(rescaled.learning_rate) == pytest.approx(0.2)


@pytest.mark.parametrize("rule", ["cubic", None, ["sqrt"]])
def test_an_unknown_rule_is_refused(rule):
    with pytest.raises(ValueError, match=r"one of \('sqrt', 'linear', 'half-life'\): got "):
        rescale_for_batch(keras.optimizers.Adam(), 32, 64, rule)


@needs_multi_optimizer
@pytest.mark.parametrize("rule", ["sqrt", "linear", "half-life"])
def test_an_optimizer_of_several_is_refused(rule):
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(default_optimizer=keras.optimizers.SGD())
    )
    with pytest.raises(ValueError, match="with a learning rate: got MultiOptimizer"):
        rescale_for_batch(optimizer, 32, 64, rule)
