"""Windows whose length follows a schedule, or the noise scale."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger import AccumulationSchedule, RangerOptimizer
from tests.driver import Driver
from tests.models import assert_same_weights, data, fit, network

WEIGHTS = [np.linspace(-1, 1, 6).reshape(2, 3), np.ones(4)]
TORCH = keras.config.backend() == "torch"


def optimizer(steps, rate=0.1, **arguments):
    inner = keras.optimizers.SGD(rate, momentum=0.9)
    return RangerOptimizer(inner=inner, accumulation_steps=steps, **arguments)


def random_gradients(count, noise=1.0, mean=0.3, seed=0):
    generator = np.random.default_rng(seed)
    return [[generator.normal(mean, noise, w.shape) for w in WEIGHTS] for _ in range(count)]


def drive(driver, gradients):
    """Apply the gradients; return the updates and the length of the window after each."""
    seen = []
    for each in gradients:
        driver.apply(each)
        iterations = int(ops.convert_to_numpy(driver.optimizer.iterations.value))
        seen.append((iterations, driver.optimizer.accumulation_steps))
    return seen


class Record(keras.callbacks.Callback):
    """Keeps the updates and the length of the window after each micro-batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.seen.append((int(optimizer.iterations), optimizer.accumulation_steps))


# Updates 0, 1: one micro-batch each; 2: two; 3 and later: three.
SCHEDULE = {0: 1, 2: 2, 3: 3}
EXPECTED = [(1, 1), (2, 2), (2, 2), (3, 3), (3, 3), (3, 3), (4, 3), (4, 3), (4, 3), (5, 3)]


def test_a_schedule_counts_updates_and_is_traced_once():
    driver = Driver(optimizer(AccumulationSchedule(SCHEDULE)), WEIGHTS)
    assert driver.optimizer.accumulation_steps == 1
    assert drive(driver, random_gradients(10)) == EXPECTED
    assert driver.traces == 1 or TORCH


def test_a_schedule_updates_as_assigned_lengths_do():
    gradients = random_gradients(10)
    scheduled = Driver(optimizer(AccumulationSchedule(SCHEDULE)), WEIGHTS)
    assigned = Driver(optimizer(1), WEIGHTS)
    drive(scheduled, gradients)
    for each, (_, steps) in zip(gradients, EXPECTED, strict=True):
        assigned.apply(each)
        assigned.optimizer.accumulation_steps = steps
    for weight, expected in zip(scheduled.weights, assigned.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_schedule_as_a_callback_of_fit():
    x, y = data(40)
    given = network(optimizer(AccumulationSchedule(SCHEDULE)))
    called = network(optimizer(4))
    records = Record(), Record()
    fit(given, x, y, 4, callbacks=[records[0]])
    fit(called, x, y, 4, callbacks=[AccumulationSchedule(SCHEDULE), records[1]])
    assert records[0].seen == records[1].seen == EXPECTED
    assert_same_weights(given, called, tolerance=0)


def test_a_callback_reaches_an_optimizer_whose_loss_is_scaled():
    x, y = data(40)
    model = network(keras.optimizers.LossScaleOptimizer(optimizer(4)))
    fit(model, x, y, 4, callbacks=[AccumulationSchedule(SCHEDULE)])
    assert model.optimizer.inner_optimizer.accumulation_steps == 3


def test_a_schedule_takes_over_a_model_that_has_trained():
    x, y = data(40)
    model = network(optimizer(2))
    fit(model, x, y, 4)  # 5 updates
    record = Record()
    fit(model, x, y, 4, callbacks=[AccumulationSchedule({0: 1, 6: 3}), record])
    assert record.seen[:5] == [(6, 3), (6, 3), (6, 3), (7, 3), (7, 3)]


@pytest.mark.parametrize(
    "steps", [AccumulationSchedule(SCHEDULE), "auto"], ids=["schedule", "auto"]
)
def test_a_window_that_is_saved_goes_on_as_if_it_had_not_been(steps):
    gradients = random_gradients(120, mean=0.0)
    whole = Driver(optimizer(steps), WEIGHTS)
    drive(whole, gradients[:71])
    assert whole.optimizer.pending_micro_batches > 0
    store = {}
    whole.optimizer.save_own_variables(store)
    resumed = Driver(optimizer(steps), whole.weights)
    resumed.optimizer.load_own_variables(store)
    assert drive(resumed, gradients[71:]) == drive(whole, gradients[71:])
    assert resumed.optimizer.noise_scale == whole.optimizer.noise_scale
    for weight, expected in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_fit_may_be_repeated_with_a_schedule_like_the_last():
    x, y = data(40)
    model = network(optimizer(4))
    for _ in range(2):
        fit(model, x, y, 4, callbacks=[AccumulationSchedule(SCHEDULE)])
    with pytest.raises(ValueError, match="follows an AccumulationSchedule"):
        fit(model, x, y, 4, callbacks=[AccumulationSchedule({0: 7})])


def test_a_plain_checkpoint_begins_a_window_without_noise():
    store = {}
    plain = Driver(keras.optimizers.SGD(0.1, momentum=0.9), WEIGHTS)
    plain.optimizer.save_own_variables(store)
    loaded, fresh = (Driver(optimizer("auto"), WEIGHTS) for _ in range(2))
    gradients = random_gradients(8)
    for each in gradients[:3]:
        loaded.apply(each)
    loaded.optimizer.load_own_variables(store)
    assert loaded.optimizer.pending_micro_batches == 0
    for each in gradients[3:7]:
        loaded.apply(each)
        fresh.apply(each)
    assert loaded.optimizer.noise_scale == fresh.optimizer.noise_scale


def test_a_saved_model_keeps_its_schedule(tmp_path):
    x, y = data(40)
    model = network(optimizer(AccumulationSchedule(SCHEDULE)))
    fit(model, x, y, 4)
    model.save(tmp_path / "model.keras")
    resumed, record = keras.saving.load_model(tmp_path / "model.keras"), Record()
    fit(resumed, x, y, 4, callbacks=[record])
    assert record.seen[:4] == [(5, 3), (5, 3), (6, 3), (6, 3)]


@pytest.mark.parametrize("steps", [AccumulationSchedule(SCHEDULE), "auto", 3])
def test_config_round_trip(steps):
    arguments = {"max_accumulation_steps": 9} if steps == "auto" else {}
    config = keras.saving.serialize_keras_object(optimizer(steps, **arguments))
    other = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(other) == config
    driver = Driver(other, WEIGHTS)
    assert drive(driver, random_gradients(10)) == drive(
        Driver(optimizer(steps, **arguments), WEIGHTS), random_gradients(10)
    )


def test_auto_grows_where_noise_hides_the_gradient_up_to_its_bound():
    driver = Driver(optimizer("auto", max_accumulation_steps=12), WEIGHTS)
    steps = [each for _, each in drive(driver, random_gradients(400, noise=1.0, mean=0.0))]
    assert steps[0] == 4
    assert max(steps) == steps[-1] == 12
    assert 8 in steps  # at most doubled at a time
    assert driver.traces == 1 or TORCH


def test_auto_shrinks_to_one_where_there_is_no_noise_and_keeps_measuring():
    driver = Driver(optimizer("auto"), WEIGHTS)
    seen = drive(driver, random_gradients(200, noise=0.01, mean=1.0))
    last = dict(seen[-60:])  # the length after each update
    assert set(last.values()) == {1, 2}
    for updates, steps in last.items():
        assert steps == (2 if updates % 8 == 0 else 1)
    before: Any = driver.optimizer.noise_scale
    drive(driver, random_gradients(40, noise=0.01, mean=1.0))
    after: Any = driver.optimizer.noise_scale
    assert after.windows > before.windows


def test_auto_settles_at_the_noise_scale():
    """Ten weights with noise 1 and the gradient 0.5 have the scale 4, in micro-batches."""
    driver = Driver(optimizer("auto"), WEIGHTS)
    seen = drive(driver, random_gradients(1500, noise=1.0, mean=0.5))
    steps = [each for _, each in seen[-500:]]
    assert np.mean(steps) == pytest.approx(4, abs=1)
    assert np.ptp(steps) <= 2


def test_auto_measures_windows_of_a_fit_and_of_its_end():
    x, y = data(60)
    model = network(optimizer("auto", max_accumulation_steps=5))
    fit(model, x, y, 2)
    estimate = model.optimizer.noise_scale
    assert estimate.windows == int(model.optimizer.iterations) == 8  # 7 of four, and two more
    assert estimate.effective_batch == pytest.approx(30 / 8)


def test_a_checkpoint_without_noise_begins_to_measure(tmp_path):
    x, y = data(32)
    plain, auto = network(optimizer(4)), network(optimizer("auto"))
    fit(plain, x, y, 4)
    plain.save_weights(tmp_path / "plain.weights.h5")
    auto.optimizer.build(auto.trainable_variables)
    auto.load_weights(tmp_path / "plain.weights.h5")
    fit(auto, x, y, 4)
    assert auto.optimizer.noise_scale.windows > 0


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({1: 2}, "must begin at update 0"),
        ({0: 0}, r"steps\[0\] must be an integer >= 1"),
        ({0: 1, 5: 2.5}, r"steps\[5\] must be an integer >= 1"),
        ({0: 1, 2.5: 2}, "An update of steps must be an integer >= 0: got 2.5"),
        ({0: 1, -3: 2}, "An update of steps must be an integer >= 0: got -3"),
        ({0: 1, "ten": 2}, "An update of steps must be an integer >= 0: got 'ten'"),
        ({}, "must begin at update 0"),
    ],
)
def test_schedules_out_of_range(steps, words):
    with pytest.raises(ValueError, match=words):
        AccumulationSchedule(steps)


def test_integers_of_numpy_make_a_schedule():
    steps: Any = {0: 1, np.int64(5): np.int64(2)}
    assert AccumulationSchedule(steps).steps == {0: 1, 5: 2}


def test_a_schedule_must_be_a_dict():
    steps: Any = [1, 4]
    with pytest.raises(TypeError, match="dict from updates"):
        AccumulationSchedule(steps)


@pytest.mark.parametrize("steps", [AccumulationSchedule({0: 2}), "auto"])
def test_nothing_is_assigned_beside_a_schedule(steps):
    with pytest.raises(ValueError, match="accumulation_steps follows"):
        optimizer(steps).accumulation_steps = 7


def test_two_schedules_are_refused():
    x, y = data(8)
    model = network(optimizer("auto"))
    with pytest.raises(ValueError, match="Use one of them"):
        fit(model, x, y, 4, callbacks=[AccumulationSchedule({0: 2})])


def test_a_schedule_needs_a_window():
    x, y = data(8)
    with pytest.raises(TypeError, match="RangerOptimizer"):
        fit(network("sgd"), x, y, 4, callbacks=[AccumulationSchedule({0: 2})])


@pytest.mark.parametrize("arguments", [{"steps": 4}, {"steps": AccumulationSchedule({0: 2})}])
def test_a_bound_is_for_auto(arguments):
    with pytest.raises(ValueError, match="max_accumulation_steps bounds"):
        optimizer(**arguments, max_accumulation_steps=8)


@pytest.mark.parametrize("maximum", [0, 1.5, "8"])
def test_a_bound_out_of_range(maximum):
    with pytest.raises(ValueError, match="max_accumulation_steps must be"):
        optimizer("auto", max_accumulation_steps=maximum)


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="accumulation_steps must be an integer"):
        optimizer("automatic")
