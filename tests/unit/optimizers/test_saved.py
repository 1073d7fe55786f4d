"""What configs and files hold, whole or in part."""

import keras
import numpy as np
import pytest

import tensorflow_ranger as ranger
from tests.driver import Driver
from tests.marks import needs_multi_optimizer
from tests.models import data, network


def several(pattern):
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.SGD(0.1, momentum=0.9), {pattern: keras.optimizers.Adam(0.01)}
        )
    )


def in_mid_window(optimizer):
    model = network(optimizer, loss=keras.losses.MeanSquaredError())
    train(model, range(6))
    return model


def train(model, batches):
    x, y = data()
    for i in batches:
        model.train_on_batch(x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4])


def values(variables):
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


def got(name, **config):
    return keras.optimizers.get({"class_name": f"tensorflow_ranger>{name}", "config": config})


@pytest.mark.parametrize("name", ["RangerOptimizer", "RAdam", "Ranger"])
def test_an_empty_config_has_the_defaults(name):
    expected = getattr(ranger, name)().get_config()
    config = got(name).get_config()
    for each in (expected, config):
        each.get("inner", {}).get("config", {}).pop("name", None)  # numbered by Keras
    assert config == expected


def test_ranger21_names_what_its_config_lacks():
    with pytest.raises(ValueError, match="warm_down needs total_updates"):
        got("Ranger21")
    assert got("Ranger21", total_updates=9, beta_1=0.8).beta_1 == 0.8


def test_a_part_of_a_config_has_the_defaults_for_the_rest():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.5)
    optimizer = got(
        "RangerOptimizer",
        learning_rate=keras.saving.serialize_keras_object(schedule),
        inner="adam",
        loss_scale_factor=8.0,
        accumulation_steps=2,
    )
    assert float(optimizer.learning_rate) == 0.5
    assert optimizer.loss_scale_factor == 8.0
    assert isinstance(optimizer.inner_optimizer, keras.optimizers.Adam)


@needs_multi_optimizer
def test_a_multi_optimizer_is_saved_in_mid_window(tmp_path):
    model = in_mid_window(ranger.RangerOptimizer(inner=several(".*bias"), accumulation_steps=4))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.pending_micro_batches == 2
    for each in (model, loaded):
        train(each, range(6, 12))
    for actual, expected in zip(
        values([*loaded.weights, *loaded.optimizer.variables]),
        values([*model.weights, *model.optimizer.variables]),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)


@needs_multi_optimizer
@pytest.mark.filterwarnings("ignore:Skipping variable loading:UserWarning")  # plain Keras'
def test_a_multi_optimizer_that_finds_other_paths_says_so(tmp_path):
    # Keras makes a Sequential's variables without its name in their paths while it loads one.
    pattern = "sequential.*/bias"
    plain = in_mid_window(several(pattern))
    plain.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    assert len(loaded.optimizer.variables) < len(plain.optimizer.variables)

    model = in_mid_window(ranger.RangerOptimizer(inner=several(pattern), accumulation_steps=4))
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="of the MultiOptimizer inside .* could not be loaded"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.pending_micro_batches == 2


@pytest.mark.parametrize("cls", [keras.optimizers.SGD, ranger.RangerOptimizer])
def test_an_h5_file_holds_no_state_that_could_be_trained_on(cls, tmp_path):
    model = in_mid_window(cls(0.1, momentum=0.9))
    model.save(tmp_path / "model.h5")
    if cls is ranger.RangerOptimizer:
        with pytest.warns(UserWarning, match=r"Keras builds the optimizer of an \.h5 file for no"):
            loaded = keras.saving.load_model(tmp_path / "model.h5")
    else:
        loaded = keras.saving.load_model(tmp_path / "model.h5")
    for actual, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    # Keras 3.12 on TensorFlow cannot write the variable that it names in its message.
    errors = ValueError, NotImplementedError
    with pytest.raises(errors, match=r"Unknown variable|built with|numpy\(\) is only available"):
        train(loaded, range(1))
    loaded.compile(cls(0.1, momentum=0.9), "mse")
    train(loaded, range(1))


def test_set_weights_still_counts_arrays():
    optimizer = Driver(ranger.RangerOptimizer(), [np.ones(3)]).optimizer
    with pytest.raises(ValueError, match="weights must hold"):
        optimizer.set_weights([*values(optimizer.variables), np.zeros(3)])
