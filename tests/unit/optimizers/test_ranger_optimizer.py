"""RangerOptimizer's attributes, errors, and what it saves."""

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tests.driver import Driver

BACKEND = keras.config.backend()


def built(**settings):
    return Driver(RangerOptimizer(**settings), [np.ones((2, 3)), np.ones(3)])


def gradients(value=1.0):
    return [np.full((2, 3), value), np.full(3, value)]


def test_the_defaults():
    optimizer = RangerOptimizer()
    assert optimizer.accumulation_steps == 4
    assert type(optimizer.inner_optimizer).__name__ == "SGD"
    assert optimizer.skip_nonfinite is True
    assert optimizer.reduction == "mean"


def test_the_founding_arguments():
    optimizer = RangerOptimizer(learning_rate=0.001, momentum=0.9)
    assert float(optimizer.learning_rate) == pytest.approx(0.001)
    assert optimizer.inner_optimizer.momentum == 0.9


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", None, True])
def test_accumulation_steps_must_be_a_positive_integer(value):
    with pytest.raises(ValueError, match="accumulation_steps must be an integer >= 1: got"):
        RangerOptimizer(accumulation_steps=value)
    optimizer = RangerOptimizer()
    with pytest.raises(ValueError, match="accumulation_steps must be an integer >= 1: got"):
        optimizer.accumulation_steps = value
    assert optimizer.accumulation_steps == 4


def test_a_numpy_integer_counts():
    assert RangerOptimizer(accumulation_steps=np.int32(3)).accumulation_steps == 3


@pytest.mark.parametrize("value", ["max", None])
def test_reduction_must_be_known(value):
    with pytest.raises(ValueError, match="reduction must be one of"):
        RangerOptimizer(reduction=value)


def test_accumulator_dtype_must_be_floating():
    with pytest.raises(ValueError, match="accumulator_dtype must be a floating dtype: got 'int32'"):
        RangerOptimizer(accumulator_dtype="int32")


@pytest.mark.skipif(BACKEND != "jax", reason="float64 is switched off on JAX only")
def test_float64_sums_need_float64():
    with pytest.raises(ValueError, match="accumulator_dtype='float64' is switched off on JAX"):
        built(accumulator_dtype="float64")


@pytest.mark.parametrize("mass", [-1, -0.5, np.nan, np.inf])
def test_mass_must_be_finite_and_positive(mass):
    optimizer = built().optimizer
    with pytest.raises(ValueError, match="mass must be a finite number >= 0: got"):
        optimizer.apply([keras.ops.ones((2, 3)), keras.ops.ones(3)], mass=mass)


def test_a_mass_may_be_an_integer_tensor():
    optimizer = built(learning_rate=1.0, momentum=0.0, accumulation_steps=2).optimizer
    for mass, value in ((1, 1.0), (3, 5.0)):
        gradients = [keras.ops.full((2, 3), value), keras.ops.full((3,), value)]
        optimizer.apply(gradients, mass=keras.ops.convert_to_tensor(mass, dtype="int32"))
    weight = optimizer._trainable_variables[0]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weight.value), np.full((2, 3), -3.0))


def test_mass_is_refused_with_sums():
    optimizer = built(reduction="sum").optimizer
    with pytest.raises(ValueError, match="mass has no meaning"):
        optimizer.apply([keras.ops.ones((2, 3)), keras.ops.ones(3)], mass=3)


def test_a_mass_that_is_not_finite_leaves_the_micro_batch_out():
    driver = Driver(RangerOptimizer(), [np.ones(3)], masses=True)
    for mass in (np.nan, np.inf, -1.0):
        driver.apply([np.ones(3)], mass)
    assert driver.optimizer.pending_micro_batches == 0
    assert driver.optimizer.skipped_micro_batches == 3


def test_the_number_of_gradients_is_checked():
    optimizer = built().optimizer
    with pytest.raises(ValueError, match="got 1 gradients for 2 variables"):
        optimizer.apply([keras.ops.ones((2, 3))])


def test_variables_are_needed_once():
    with pytest.raises(ValueError, match="apply without variables needs a built optimizer"):
        RangerOptimizer().apply([keras.ops.ones(3)])


def test_an_unknown_variable_is_refused():
    optimizer = built().optimizer
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([keras.ops.ones(3)], [keras.Variable(np.ones(3))])


def test_some_gradient_is_needed():
    optimizer = built().optimizer
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None])


def test_no_gradients_at_all_are_no_micro_batch():
    optimizer = built().optimizer
    optimizer.apply([])
    assert optimizer.pending_micro_batches == 0


def test_gradients_come_in_any_order_of_variables():
    driver = built(learning_rate=1.0, momentum=0.0, accumulation_steps=1)
    pairs = zip(
        [3 * keras.ops.ones(3), keras.ops.ones((2, 3))], driver.variables[::-1], strict=True
    )
    assert int(driver.optimizer.apply_gradients(pairs)) == 1
    np.testing.assert_array_equal(driver.weights[0], np.zeros((2, 3)))
    np.testing.assert_array_equal(driver.weights[1], np.full(3, -2.0))


def test_pending_and_iterations_count():
    driver = built(accumulation_steps=3)
    counts = []
    for _ in range(7):
        driver.apply(gradients())
        optimizer = driver.optimizer
        counts.append((optimizer.pending_micro_batches, int(optimizer.iterations)))
    assert counts == [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2)]


def test_a_smaller_accumulation_closes_the_open_window():
    driver = built(accumulation_steps=5)
    for _ in range(3):
        driver.apply(gradients())
    driver.optimizer.accumulation_steps = 2
    driver.apply(gradients())
    assert int(driver.optimizer.iterations) == 1
    assert driver.optimizer.pending_micro_batches == 0


def test_nonfinite_gradients_pass_when_asked():
    driver = built(accumulation_steps=1, skip_nonfinite=False)
    driver.apply(gradients(np.nan))
    assert np.isnan(driver.weights[0]).all()
    assert driver.optimizer.skipped_micro_batches == 0


def test_finalize_twice_updates_once():
    driver = built(accumulation_steps=4)
    driver.apply(gradients())
    for _ in range(2):
        driver.optimizer.finalize_variable_values(driver.variables)
    assert int(driver.optimizer.iterations) == 1


def test_left_out_micro_batches_are_told_once():
    driver = built()
    driver.apply(gradients(np.inf))
    with pytest.warns(UserWarning, match="Left out 1 micro-batch"):
        driver.optimizer.finalize_variable_values(driver.variables)
    driver.optimizer.finalize_variable_values(driver.variables)  # warnings are errors


def test_settings_of_the_inner_optimizer_are_read_and_set_through():
    optimizer = RangerOptimizer(inner="adam", weight_decay=0.1, use_ema=True, ema_momentum=0.5)
    assert (optimizer.weight_decay, optimizer.use_ema, optimizer.ema_momentum) == (0.1, True, 0.5)
    optimizer.weight_decay = 0.2
    optimizer.learning_rate = 0.25
    assert optimizer.inner_optimizer.weight_decay == 0.2
    assert float(optimizer.inner_optimizer.learning_rate) == 0.25


def test_decay_exclusions_reach_the_inner_optimizer():
    optimizer = RangerOptimizer(0.1, 0.0, accumulation_steps=1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["weight_1"])
    driver = Driver(optimizer, [np.ones((2, 3)), np.ones(3)])
    driver.apply(gradients(0.0))
    np.testing.assert_allclose(driver.weights[0], np.full((2, 3), 0.95), rtol=1e-6)
    np.testing.assert_array_equal(driver.weights[1], np.ones(3))


def test_gradients_are_divided_by_the_loss_scale():
    optimizer = RangerOptimizer(1.0, 0.0, accumulation_steps=2, loss_scale_factor=8.0)
    driver = Driver(optimizer, [np.zeros(1)])
    for gradient in (8.0, 24.0):
        driver.apply([np.array([gradient])])
    np.testing.assert_allclose(driver.weights[0], [-2.0])


def test_the_loss_scale_is_the_wrapper_s():
    optimizer = RangerOptimizer(inner="adam", loss_scale_factor=8.0)
    assert optimizer.scale_loss(2.0) == 16.0
    assert optimizer.inner_optimizer.loss_scale_factor is None
    again = RangerOptimizer.from_config(optimizer.get_config())
    assert again.loss_scale_factor == 8.0


def test_config_keeps_every_argument():
    optimizer = RangerOptimizer(
        0.5,
        inner="adam",
        accumulation_steps=7,
        skip_nonfinite=False,
        accumulator_dtype="bfloat16",
        reduction="sum",
        name="mine",
        clipnorm=1.0,
    )
    optimizer.accumulation_steps = 9
    again = RangerOptimizer.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.accumulation_steps == 9
    assert again.clipnorm == 1.0


def test_weights_can_be_set_as_a_list():
    driver = built(accumulation_steps=2)
    for _ in range(3):
        driver.apply(gradients())
    weights = [keras.ops.convert_to_numpy(v.value) for v in driver.optimizer.variables]
    other = built(accumulation_steps=2)
    other.optimizer.set_weights(weights)
    assert other.optimizer.pending_micro_batches == 1
    assert int(other.optimizer.iterations) == 1
    with pytest.raises(ValueError, match=f"weights must hold {len(weights)} arrays"):
        other.optimizer.set_weights(weights[:-1])


def test_the_inner_optimizer_is_saved_once():
    store = {}
    optimizer = built(inner="adam").optimizer
    optimizer.save_own_variables(store)
    assert len(store) == len(optimizer.variables)


def test_own_variables_are_the_window_s():
    names = [v.name for v in built().optimizer.variables[:7]]
    assert names[0] == "accumulation_steps"
    assert names[1:3] == ["weight_0_window_sum", "weight_1_window_sum"]
    assert set(names[3:]) == {
        "window_mass",
        "window_micro_batches",
        "window_has_gradient",
        "skipped_micro_batches",
    }


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no stateless optimizers")
@pytest.mark.parametrize(
    ("missing", "name"), [(0, "optimizer_variables"), (1, "trainable_variables")]
)
def test_stateless_apply_checks_its_lists(missing, name):
    driver = built()
    state = [[v.value for v in driver.optimizer.variables], [v.value for v in driver.variables]]
    state[missing].pop()
    with pytest.raises(ValueError, match=f"{name} must hold"):
        driver.optimizer.stateless_apply(state[0], [None, None], state[1])


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no stateless optimizers")
def test_stateless_apply_needs_a_built_optimizer():
    with pytest.raises(ValueError, match="stateless_apply needs a built optimizer"):
        RangerOptimizer().stateless_apply([], [], [])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends have stateless optimizers")
def test_stateless_apply_is_refused_on_tensorflow():
    with pytest.raises(ValueError, match="stateless_apply is not supported"):
        built().optimizer.stateless_apply([], [], [])


def test_variables_overwritten_by_their_gradient_take_the_largest():
    scale = keras.Variable(np.zeros(2, "float32"))
    scale.overwrite_with_gradient = True
    weight = keras.Variable(np.zeros(2, "float32"))
    optimizer = RangerOptimizer(1.0, 0.0, accumulation_steps=2)
    optimizer.build([scale, weight])
    for value in ([3.0, 1.0], [2.0, 5.0]):
        gradient = keras.ops.convert_to_tensor(np.array(value, "float32"))
        optimizer.apply([gradient, gradient], [scale, weight], mass=3)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(scale.value), [3.0, 5.0])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight.value), [-2.5, -3.0])


def test_a_checkpoint_of_a_smaller_model_is_refused():
    store = {}
    optimizer = RangerOptimizer()
    Driver(optimizer, [np.ones(3)]).optimizer.save_own_variables(store)
    with (
        pytest.warns(UserWarning, match="Skipping variable loading"),
        pytest.raises(ValueError, match="holds no window_sum_1"),
    ):
        built().optimizer.load_own_variables(store)


def test_a_layer_frozen_in_mid_window_stays():
    driver = built(learning_rate=1.0, momentum=0.0, accumulation_steps=2)
    optimizer, (first, second) = driver.optimizer, driver.variables
    ones = [keras.ops.ones((2, 3)), keras.ops.ones((3,))]
    optimizer.apply(ones, [first, second])
    first.trainable = False
    optimizer.apply(ones[1:], [second])
    np.testing.assert_array_equal(driver.weights[0], np.ones((2, 3)))
    np.testing.assert_array_equal(driver.weights[1], np.zeros(3))
    optimizer.apply(ones[:1], [first])
    optimizer.finalize_variable_values([first])
    np.testing.assert_array_equal(driver.weights[0], np.ones((2, 3)))
    assert optimizer.pending_micro_batches == 0


def test_a_mass_is_a_scalar():
    optimizer = built().optimizer
    with pytest.raises(ValueError, match=r"mass must be a scalar: got shape \(1,\)"):
        optimizer.apply([None, keras.ops.ones((3,))], mass=np.array([3.0]))
    with pytest.raises(ValueError, match="mass must be a finite number >= 0"):
        optimizer.apply([None, keras.ops.ones((3,))], mass=np.array(-3.0))


def test_a_variable_given_twice_is_refused():
    driver = built()
    twice = [driver.variables[1]] * 2
    with pytest.raises(ValueError, match="A variable was given twice"):
        driver.optimizer.apply([keras.ops.ones((3,))] * 2, twice)


def test_float16_sums_are_refused():
    with pytest.raises(ValueError, match="accumulator_dtype must not be float16"):
        RangerOptimizer(accumulator_dtype="float16")


def test_loading_does_not_tell_again_of_what_was_left_out():
    driver = built()
    driver.apply(gradients(np.inf))
    store = {}
    driver.optimizer.save_own_variables(store)
    other = built()
    other.optimizer.load_own_variables(store)
    other.optimizer.finalize_variable_values(other.variables)  # warnings are errors
    assert other.optimizer.skipped_micro_batches == 1


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_a_window_may_be_finalized_in_a_compiled_function():
    driver = built(learning_rate=1.0, momentum=0.0, accumulation_steps=4)
    driver.apply(gradients())
    optimizer, variables = driver.optimizer, driver.variables
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(lambda: optimizer.finalize_variable_values(variables))()
    elif BACKEND == "jax":
        import jax

        everything = [*variables, *optimizer.variables]

        @jax.jit
        def finalize(values):
            with keras.StatelessScope(list(zip(everything, values, strict=True))) as scope:
                optimizer.finalize_variable_values(variables)
            return [scope.get_current_value(variable) for variable in everything]

        for variable, value in zip(
            everything, finalize([v.value for v in everything]), strict=True
        ):
            variable.assign(value)
    else:
        optimizer.finalize_variable_values(variables)
    np.testing.assert_array_equal(driver.weights[1], np.zeros(3))
    assert optimizer.pending_micro_batches == 0


if BACKEND == "tensorflow":

    def test_numpy_gradients_are_taken():
        driver = built(learning_rate=1.0, momentum=0.0, accumulation_steps=1)
        driver.optimizer.apply([np.ones((2, 3), "float32"), np.ones(3, "float32")])
        np.testing.assert_array_equal(driver.weights[1], np.zeros(3))

    def test_a_tensorflow_checkpoint_keeps_the_window(tmp_path):
        import tensorflow as tf

        driver, other = built(accumulation_steps=3), built(accumulation_steps=3)
        for _ in range(4):
            driver.apply(gradients())
        path = tf.train.Checkpoint(optimizer=driver.optimizer).save(tmp_path / "state")
        restored = tf.train.Checkpoint(optimizer=other.optimizer).restore(path)
        restored.assert_existing_objects_matched()
        values = [
            [keras.ops.convert_to_numpy(v.value) for v in d.optimizer.variables]
            for d in (other, driver)
        ]
        for actual, expected in zip(*values, strict=True):
            np.testing.assert_array_equal(actual, expected)

    def test_a_model_exports(tmp_path):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(RangerOptimizer(), "mse")
        model.train_on_batch(np.ones((4, 3)), np.ones((4, 1)))
        model.export(tmp_path / "exported", verbose=False)
        assert (tmp_path / "exported" / "saved_model.pb").exists()


if BACKEND == "torch":

    def test_sparse_gradients_are_added_to_their_rows():
        import torch

        layer = keras.layers.TorchModuleWrapper(torch.nn.Embedding(6, 2, sparse=True))
        before = keras.ops.convert_to_numpy(layer.trainable_variables[0].value).copy()
        optimizer = RangerOptimizer(1.0, 0.0, accumulation_steps=2)
        for rows in ([1, 2, 2], [2, 4, 5]):
            layer.zero_grad()
            layer(torch.tensor(rows)).sum().backward()
            variables = layer.trainable_variables
            optimizer.apply([v.value.grad for v in variables], variables)
        moved = before - keras.ops.convert_to_numpy(variables[0].value)
        np.testing.assert_allclose(moved[:, 0], [0, 0.5, 1.5, 0, 0.5, 0.5], atol=1e-6)


if BACKEND == "jax":

    def test_a_reference_without_state_says_so():
        class Read(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                with pytest.raises(RuntimeError, match=r"go through self\.model\.optimizer"):
                    optimizer.pending_micro_batches  # noqa: B018
                assert self.model.optimizer.pending_micro_batches == 1

        optimizer = RangerOptimizer()
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0, callbacks=[Read()])


def test_a_model_saved_before_training_loads_without_a_word(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(RangerOptimizer(0.5, accumulation_steps=7, clipnorm=1.0), "mse")
    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.load_model(tmp_path / "model.keras").optimizer  # warnings are errors
    assert optimizer.accumulation_steps == 7
    assert float(optimizer.learning_rate) == 0.5
