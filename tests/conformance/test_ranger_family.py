"""The Ranger family in `fit`: windows, micro-batches, loss scales, saving, frozen layers."""

import copy
import json

import keras
import numpy as np
import pytest

import tensorflow_ranger as ranger
from tests.driver import Driver
from tests.marks import first_but
from tests.models import assert_same_weights, data, fit, network

BACKEND = keras.config.backend()
MAKERS = {
    "RAdam": lambda: ranger.RAdam(0.02, weight_decay=0.01),
    "Ranger": lambda: ranger.Ranger(0.02, lookahead=ranger.Lookahead(2, 0.4)),
    "Ranger21": lambda: ranger.Ranger21(
        0.02, total_updates=12, warm_up_updates=2, lookahead=ranger.Lookahead(2, 0.4)
    ),
    "Lookahead(Adam)": lambda: ranger.RangerOptimizer(
        inner=keras.optimizers.Adam(0.02),
        accumulation_steps=1,
        lookahead=ranger.Lookahead(2, 0.4),
        adaptive_clipping=ranger.AdaptiveGradientClipping(0.05),
        centralize=True,
    ),
}
QUICK = [MAKERS["Ranger21"]]
every_optimizer = pytest.mark.parametrize("make", first_but(QUICK, MAKERS.values()), ids=MAKERS)


def trained(optimizer, batch_size=12, epochs=2, wrap=lambda model: model, **settings):
    x, y = data()
    model = wrap(network(optimizer, **settings))
    fit(model, x, y, batch_size=batch_size, epochs=epochs)
    return model


@every_optimizer
def test_config_round_trip(make):
    config = json.loads(json.dumps(keras.optimizers.serialize(make())))
    again = keras.optimizers.deserialize(copy.deepcopy(config))
    assert keras.optimizers.serialize(again) == config


@every_optimizer
def test_micro_batches_give_the_whole_batch(make):
    parts = trained(make(), wrap=lambda model: ranger.microbatch(model, 5))
    assert_same_weights(parts, trained(make()), 1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch.compile's own modules
@pytest.mark.thorough
@every_optimizer
def test_jit_compile(make):
    compiled = trained(make(), batch_size=24, epochs=1, jit_compile=True)
    eager = trained(make(), batch_size=24, epochs=1, run_eagerly=True, jit_compile=False)
    assert_same_weights(compiled, eager, 1e-5)


@every_optimizer
def test_windows_give_the_whole_batch(make):
    if isinstance(make(), ranger.RangerOptimizer):
        optimizer = make()
        optimizer.accumulation_steps = 3
    else:
        optimizer = ranger.RangerOptimizer(inner=make(), accumulation_steps=3)
    assert_same_weights(trained(optimizer, batch_size=4), trained(make()), 1e-4)


@every_optimizer
def test_save_load_and_train_on(make, tmp_path):
    x, y = data()
    through, stopped = network(make()), network(make())
    fit(through, x, y, batch_size=16)
    fit(through, x, y, batch_size=16)
    fit(stopped, x, y, batch_size=16)  # three updates: between two steps of Lookahead
    stopped.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    fit(resumed, x, y, batch_size=16)
    assert_same_weights(resumed, through)


@every_optimizer
def test_the_second_call_does_not_trace(make):
    driver = Driver(make(), [np.ones((3, 2)), np.ones(2)])
    for variable, axes in zip(driver.variables, ((0,), ()), strict=True):
        variable.fan_in_axes = axes
    for _ in range(5):
        driver.apply([np.ones((3, 2)), np.ones(2)])
    assert driver.traces == (5 if BACKEND == "torch" else 1)


@every_optimizer
def test_an_update_that_the_loss_scale_skips_moves_nothing(make):
    x, y = data()
    optimizer = keras.optimizers.LossScaleOptimizer(make(), initial_scale=2.0**127)
    model = network(optimizer)
    before = model.get_weights()
    model.train_on_batch(1e3 * x, 1e3 * y)
    for actual, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert int(keras.ops.convert_to_numpy(optimizer.inner_optimizer.iterations)) == 0
    scaled = trained(keras.optimizers.LossScaleOptimizer(make(), initial_scale=8.0))
    assert_same_weights(scaled, trained(make()), 1e-5)


@every_optimizer
def test_frozen_layers_and_constraints(make):
    x, y = data()
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(2, kernel_constraint=keras.constraints.UnitNorm(axis=0)),
        ]
    )
    model.compile(make(), "mse")
    fit(model, x, y, batch_size=16)
    model.layers[0].trainable = False
    before = model.layers[0].get_weights()
    # Keras on JAX has no optimizer go on with fewer variables than it was built with.
    model.compile(make() if BACKEND == "jax" else model.optimizer, "mse")
    fit(model, x, y, batch_size=16)
    for actual, expected in zip(model.layers[0].get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    norms = np.linalg.norm(model.layers[1].get_weights()[0], axis=0)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", first_but(["Ranger21"], ["Ranger", "Ranger21", "Lookahead(Adam)"]))
def test_the_model_is_left_on_slow_weights_if_asked(name):
    optimizer = MAKERS[name]()
    config = {**optimizer.get_config(), "evaluate_slow_weights": True}
    fast = trained(MAKERS[name](), batch_size=16, epochs=1)
    slow = trained(type(optimizer).from_config(config), batch_size=16, epochs=1)
    for weight, value in zip(slow.get_weights(), slow.optimizer._slow.variables, strict=True):
        np.testing.assert_array_equal(weight, value)
    x, y = data()
    other = trained(MAKERS[name](), batch_size=24, epochs=1)  # two updates: just after the step
    assert int(keras.ops.convert_to_numpy(other.optimizer.iterations)) == 2
    for weight, value in zip(other.get_weights(), other.optimizer._slow.variables, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert any(
        np.abs(one - two).max() > 1e-4
        for one, two in zip(fast.get_weights(), slow.get_weights(), strict=True)
    )
    fit(slow, x, y, batch_size=16)  # and it trains on


def test_slow_weights_start_where_a_plain_checkpoint_is(tmp_path):
    x, y = data()
    plain = network(keras.optimizers.Adam(0.02))
    fit(plain, x, y, batch_size=16)
    plain.save_weights(tmp_path / "model.weights.h5")
    model = network(MAKERS["Lookahead(Adam)"]())
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "model.weights.h5")
    for weight, value in zip(model.get_weights(), model.optimizer._slow.variables, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_centralization_in_fit_knows_the_fan_in():
    x, y = data()
    model = network(ranger.RangerOptimizer(inner="sgd", accumulation_steps=1, centralize=True))
    before = model.get_weights()
    fit(model, x, y, batch_size=48)
    for index in (0, 2):  # the kernels' columns keep their mean
        moved = model.get_weights()[index] - before[index]
        assert np.abs(moved).max() > 1e-4
        np.testing.assert_allclose(moved.mean(axis=0), 0.0, atol=1e-7)
    assert np.abs(model.get_weights()[1] - before[1]).max() > 1e-4


def test_what_is_in_doubt_is_named_once():
    variable = keras.Variable(np.ones((2, 2, 2)), name="mystery")
    optimizer = ranger.RangerOptimizer(inner="sgd", accumulation_steps=1, centralize=True)
    optimizer.build([variable])
    gradient = keras.ops.ones((2, 2, 2))
    with pytest.warns(UserWarning, match="mystery"):
        optimizer.apply([gradient], [variable])
    optimizer.apply([gradient], [variable])  # warns no more: a warning would be an error
    assert np.abs(np.asarray(variable) - 1).min() > 0
