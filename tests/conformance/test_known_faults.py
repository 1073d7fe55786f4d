"""What goes wrong in other accumulators must not go wrong here: design page, section 10."""

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tests.driver import Driver
from tests.models import assert_same_weights, data, fit, network

BACKEND = keras.config.backend()


def momentum_sgd(**settings):
    return keras.optimizers.SGD(0.1, momentum=0.9, **settings)


def ranger(accumulation_steps, **settings):
    return RangerOptimizer(
        learning_rate=0.1, momentum=0.9, accumulation_steps=accumulation_steps, **settings
    )


def test_1_uneven_micro_batches_are_weighed_by_their_mass():
    driver = Driver(RangerOptimizer(1.0, 0.0, accumulation_steps=2), [np.zeros(1)], masses=True)
    driver.apply([np.array([1.0])], mass=3.0)
    driver.apply([np.array([5.0])], mass=1.0)
    np.testing.assert_allclose(driver.weights[0], [-2.0])  # a mean of means is -3


def test_1_a_window_does_not_count_the_mass_of_the_last():
    driver = Driver(RangerOptimizer(1.0, 0.0, accumulation_steps=2), [np.zeros(1)], masses=True)
    for mass, expected in [(3.0, -1.0), (1.0, -2.0), (0.5, -3.0)]:
        for _ in range(2):
            driver.apply([np.array([1.0])], mass=mass)
        np.testing.assert_allclose(driver.weights[0], [expected])


def test_2_a_partial_window_is_divided_by_its_own_mass():
    x, y = data(20)
    model = network(ranger(2))
    fit(model, x, y, batch_size=4)
    expected = network(momentum_sgd())
    for samples in (slice(0, 8), slice(8, 16), slice(16, 20)):
        expected.train_on_batch(x[samples], y[samples])
    assert_same_weights(model, expected)


def test_2_a_window_spans_epochs():
    x, y = data(20)
    model = network(ranger(2))
    fit(model, x, y, batch_size=4, epochs=2)
    expected = network(momentum_sgd())
    fit(expected, np.concatenate([x, x]), np.concatenate([y, y]), batch_size=8)
    assert int(model.optimizer.iterations) == 5
    assert_same_weights(model, expected)


def test_3_schedules_averages_and_decay_count_updates():
    def inner():
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.01])
        return keras.optimizers.AdamW(schedule, 0.1, use_ema=True, ema_momentum=0.5)

    x, y = data()
    model = network(RangerOptimizer(inner=inner(), accumulation_steps=2))
    fit(model, x, y, batch_size=4)
    expected = network(inner())
    fit(expected, x, y, batch_size=8)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert_same_weights(model, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_4_a_micro_batch_that_is_not_finite_is_as_if_never_seen(value):
    good = [[np.array([float(i), 1.0, -1.0])] for i in range(6)]
    bad = [np.array([0.0, value, 0.0])]
    driver = Driver(ranger(2), [np.zeros(3)])
    for gradients in (good[0], bad, good[1], bad, bad, *good[2:]):
        driver.apply(gradients)
    expected = Driver(ranger(2), [np.zeros(3)])
    for gradients in good:
        expected.apply(gradients)
    np.testing.assert_array_equal(driver.weights[0], expected.weights[0])
    assert driver.optimizer.skipped_micro_batches == 3
    assert int(driver.optimizer.iterations) == 3


@pytest.mark.parametrize("inner", ["sgd", "adam"])  # sums in the momentum, sums apart
def test_4_a_micro_batch_that_is_not_finite_leaves_the_window_bit_for_bit(inner):
    driver = Driver(RangerOptimizer(0.1, inner=inner, accumulation_steps=3), [np.ones(3)])
    for _ in range(4):
        driver.apply([np.array([0.1, 1e-30, -3e7])])
    before = {v.path: keras.ops.convert_to_numpy(v) for v in driver.optimizer.variables}
    driver.apply([np.array([1.0, np.nan, 1.0])])
    after = {v.path: keras.ops.convert_to_numpy(v) for v in driver.optimizer.variables}
    (count,) = [path for path in before if path.endswith("skipped_micro_batches")]
    assert after.pop(count) == before.pop(count) + 1
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_4_gradients_too_large_to_sum_are_finite():
    driver = Driver(RangerOptimizer(1e-37, 0.0, accumulation_steps=1), [np.zeros(4)])
    driver.apply([np.full(4, 3e38)])
    assert driver.optimizer.skipped_micro_batches == 0
    np.testing.assert_allclose(driver.weights[0], np.full(4, -30.0), rtol=1e-5)


def test_5_a_micro_step_leaves_the_inner_optimizer_alone():
    {"jax": assert_no_copies_on_jax, "tensorflow": assert_loop_on_tensorflow}.get(
        BACKEND, assert_no_call
    )()


def assert_no_copies_on_jax():
    import jax

    def temporaries(optimizer, shapes):
        variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
        optimizer.build(variables)
        values = [v.value for v in variables]
        step = jax.jit(
            lambda weights, state, grads: optimizer.stateless_apply(state, grads, weights),
            donate_argnums=(0, 1),
        )
        lowered = step.lower(values, [v.value for v in optimizer.variables], values)
        parameters = sum(4 * int(np.prod(shape)) for shape in shapes)
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes / parameters

    shapes = [(256, 256)] * 4 + [(1024, 256)]
    assert temporaries(RangerOptimizer(inner="adam"), shapes) <= 1.2
    assert temporaries(keras.optimizers.Adam(gradient_accumulation_steps=4), shapes) > 2.5


def assert_loop_on_tensorflow():
    import tensorflow as tf

    variable = keras.Variable(np.zeros(3, "float32"))
    optimizer = RangerOptimizer(inner="adam")
    optimizer.build([variable])
    function = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
    graph = function.get_concrete_function(tf.zeros(3)).graph
    inside = [node.op for f in graph.as_graph_def().library.function for node in f.node_def]
    assert "Sqrt" in inside  # Adam's root stands in the body of the loop, and nowhere else
    assert "Sqrt" not in [operation.type for operation in graph.get_operations()]


def assert_no_call():
    class Counted(keras.optimizers.SGD):
        calls = 0

        def apply(self, *args, **kwargs):
            self.calls += 1
            return super().apply(*args, **kwargs)

    driver = Driver(RangerOptimizer(inner=Counted(0.1), accumulation_steps=4), [np.zeros(3)])
    for _ in range(9):
        driver.apply([np.ones(3)])
    assert driver.optimizer.inner_optimizer.calls == 2


# A sum in bfloat16 would stay at 256, one in float16 at 2048.
@pytest.mark.parametrize(
    ("dtype", "ones"),
    [("bfloat16", 512), pytest.param("float16", 4096, marks=pytest.mark.thorough)],
)
def test_6_narrow_variables_have_wide_sums(dtype, ones):
    optimizer = RangerOptimizer(1.0, 0.0, accumulation_steps=ones, reduction="sum")
    driver = Driver(optimizer, [np.zeros(2)], dtype)
    for _ in range(ones):
        driver.apply([np.ones(2)])
    np.testing.assert_array_equal(driver.weights[0], [-ones, -ones])


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_8_resuming_in_mid_window_is_exact(suffix, tmp_path):
    x, y = data(32)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 32, 4)]
    model = network(ranger(3))
    for batch in batches[:5]:
        model.train_on_batch(*batch)
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        model.save(path)
        resumed = keras.saving.load_model(path)
    else:
        model.save_weights(path)
        resumed = network(ranger(3))
        resumed.optimizer.build(resumed.trainable_variables)
        resumed.load_weights(path)
    assert resumed.optimizer.pending_micro_batches == 2
    for batch in batches[5:]:
        model.train_on_batch(*batch)
        resumed.train_on_batch(*batch)
    assert_same_weights(resumed, model, tolerance=0)
    assert int(resumed.optimizer.iterations) == 2


def test_9_changing_accumulation_steps_leaves_the_update_count():
    driver = Driver(ranger(2), [np.zeros(2)])
    for _ in range(6):
        driver.apply([np.ones(2)])
    driver.optimizer.accumulation_steps = 5
    assert int(driver.optimizer.iterations) == 3
    for _ in range(5):
        driver.apply([np.ones(2)])
    assert int(driver.optimizer.iterations) == 4
    assert driver.traces == 1 or BACKEND == "torch"


def test_12_sums_are_summed():
    x, y = data()
    loss = keras.losses.MeanSquaredError(reduction="sum")
    settings = {"reduction": "sum", "learning_rate": 0.01, "accumulation_steps": 3}
    model = network(RangerOptimizer(**settings), loss)
    fit(model, x, y, batch_size=4)
    expected = network(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    fit(expected, x, y, batch_size=12)
    assert_same_weights(model, expected)


def test_13_constraints_are_applied_once_per_update():
    class Halve(keras.constraints.Constraint):
        def __call__(self, w):
            return 0.5 * w

    def constrained(optimizer):
        model = network(optimizer)
        model.trainable_variables[0].constraint = Halve()
        return model

    x, y = data()
    model = constrained(ranger(3))
    fit(model, x, y, batch_size=4)
    expected = constrained(momentum_sgd())
    fit(expected, x, y, batch_size=12)
    assert_same_weights(model, expected)


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize("compiled", [True, False])
def test_14_a_variable_without_gradient_at_the_end_keeps_its_window(compiled):
    variables = [keras.Variable(np.zeros(2, "float32"), name=f"head_{i}") for i in range(3)]
    optimizer = RangerOptimizer(1.0, 0.0, accumulation_steps=2)
    optimizer.build(variables)

    def apply(gradients):
        optimizer.apply(gradients, variables)

    if compiled and BACKEND == "tensorflow":
        import tensorflow as tf

        apply = tf.function(apply)
    if compiled and BACKEND == "jax":
        apply = stateless_on_jax(optimizer, variables)
    ones = keras.ops.ones(2)
    for _ in range(2):
        apply([ones, None, None])
        apply([None, 3 * ones, None])
    weights = [keras.ops.convert_to_numpy(v.value)[0] for v in variables]
    np.testing.assert_allclose(weights, [-1.0, -3.0, 0.0])


def stateless_on_jax(optimizer, variables):
    import jax

    step = jax.jit(
        lambda w, s, first, second: optimizer.stateless_apply(s, [first, second, None], w)
    )

    def apply(gradients):
        weights, state = step(
            [v.value for v in variables],
            [v.value for v in optimizer.variables],
            *gradients[:2],
        )
        for variable, value in zip(
            [*variables, *optimizer.variables], [*weights, *state], strict=True
        ):
            variable.assign(value)

    return apply


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_14_a_variable_without_any_gradient_is_left_alone():
    variables = [keras.Variable(np.ones(2, "float32"), name=name) for name in ("used", "unused")]
    optimizer = RangerOptimizer(0.1, accumulation_steps=2, weight_decay=0.5)
    optimizer.build(variables)
    for _ in range(4):
        optimizer.apply([keras.ops.ones(2), None], variables)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variables[1].value), [1.0, 1.0])
    assert keras.ops.convert_to_numpy(variables[0].value)[0] < 0.8


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_14_a_window_forgets_which_variables_had_gradients():
    variables = [keras.Variable(np.zeros(2, "float32"), name=f"head_{i}") for i in range(2)]
    optimizer = RangerOptimizer(1.0, 0.9, accumulation_steps=2)
    optimizer.build(variables)
    for _ in range(2):
        optimizer.apply([keras.ops.ones(2)] * 2, variables)
    for _ in range(2):
        optimizer.apply([keras.ops.ones(2), None], variables)
    weights = [keras.ops.convert_to_numpy(v.value)[0] for v in variables]
    np.testing.assert_allclose(weights, [-2.9, -1.0], rtol=1e-6)  # momentum moves the first alone


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_15_a_plain_checkpoint_keeps_its_momentum(suffix, tmp_path):
    x, y = data(32)
    plain = network(keras.optimizers.Adam(0.1))
    fit(plain, x[:16], y[:16], batch_size=8)
    path = tmp_path / f"model{suffix}"
    (plain.save if suffix == ".keras" else plain.save_weights)(path)
    model = network(RangerOptimizer(inner="adam", accumulation_steps=2))
    model.train_on_batch(x[:4], y[:4])  # an unfinished window, which loading empties
    model.load_weights(path)
    assert model.optimizer.pending_micro_batches == 0
    fit(model, x[16:], y[16:], batch_size=4)
    fit(plain, x[16:], y[16:], batch_size=8)
    assert int(model.optimizer.iterations) == 4
    assert_same_weights(model, plain)


def test_16_a_window_that_never_fills_is_applied():
    x, y = data(20)
    model = network(ranger(8))
    fit(model, x, y, batch_size=4)
    expected = network(momentum_sgd())
    fit(expected, x, y, batch_size=20)
    assert int(model.optimizer.iterations) == 1
    assert_same_weights(model, expected)


def test_17_a_loaded_model_still_accumulates_and_logs_the_same(tmp_path):
    x, y = data()
    model = network(ranger(3, skip_nonfinite=False), metrics=["mae"])
    fit(model, x, y, batch_size=4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, RangerOptimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    history = fit(model, x, y, batch_size=4).history
    assert fit(loaded, x, y, batch_size=4).history == history
    assert_same_weights(loaded, model, tolerance=0)


def test_17_a_window_of_one_logs_what_plain_fit_logs():
    x, y = data()
    model = network(ranger(1), metrics=["mae"])
    expected = network(momentum_sgd(), metrics=["mae"])
    history = fit(model, x, y, batch_size=8, epochs=3, validation_split=0.25).history
    plain = fit(expected, x, y, batch_size=8, epochs=3, validation_split=0.25).history
    assert history.keys() == plain.keys()
    for name, values in plain.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)
