"""Contract: what Keras' optimizers do not export is as `keras_internals` takes it."""

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.backend import keras_internals
from tests.marks import needs_multi_optimizer

BACKEND = keras.config.backend()


def variables(count=2):
    return [keras.Variable(np.full(2, i, "float32")) for i in range(count)]


def ones(count=2):
    return [ops.ones(2) for _ in range(count)]


def test_trained_variables_are_those_it_was_built_with():
    optimizer = keras.optimizers.SGD(1.0)
    assert list(keras_internals.trained_variables(optimizer)) == []
    optimizer.build(weights := variables())
    assert [id(v) for v in keras_internals.trained_variables(optimizer)] == [*map(id, weights)]


def test_index_of_finds_the_slots_of_a_variable():
    optimizer = keras.optimizers.SGD(1.0, momentum=0.9)
    optimizer.build(weights := variables())
    optimizer.apply(ones(1), weights[1:])
    momentum = optimizer.momentums[keras_internals.index_of(optimizer, weights[1])]
    np.testing.assert_array_equal(ops.convert_to_numpy(momentum), [-1, -1])


def test_require_known_raises_for_another_variable():
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(weights := variables())
    keras_internals.require_known(optimizer, weights[1:])
    with pytest.raises(ValueError, match="Unknown variable"):
        keras_internals.require_known(optimizer, variables())


def test_take_variables_lets_them_be_known_and_owns_none():
    optimizer = keras.optimizers.SGD(1.0, momentum=0.9)
    keras_internals.take_variables(optimizer, weights := variables())
    keras_internals.require_known(optimizer, weights)
    assert [keras_internals.index_of(optimizer, v) for v in weights] == [0, 1]
    assert [id(v) for v in keras_internals.trained_variables(optimizer)] == [*map(id, weights)]
    assert not {id(v) for v in optimizer.variables} & {id(v) for v in weights}


def test_own_variables_leave_out_what_every_optimizer_has():
    optimizer = keras.optimizers.SGD(1.0, momentum=0.9)
    assert len(optimizer.variables) == 2
    assert keras_internals.own_variables(optimizer) == []
    optimizer.build(variables())
    own = keras_internals.own_variables(optimizer)
    assert [id(v) for v in own] == [id(v) for v in optimizer.momentums]


def test_learning_rate_of_is_as_it_was_given():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    assert keras_internals.learning_rate_of(keras.optimizers.SGD(schedule)) is schedule
    assert not callable(keras_internals.learning_rate_of(keras.optimizers.SGD(0.5)))


@pytest.mark.parametrize("by", ["var_list", "var_names"])
def test_skips_weight_decay_tells_of_both_ways(by):
    optimizer = keras.optimizers.AdamW(1.0)
    assert not keras_internals.skips_weight_decay(optimizer)
    given = variables(1) if by == "var_list" else ["bias"]
    optimizer.exclude_from_weight_decay(**{by: given})
    assert keras_internals.skips_weight_decay(optimizer)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, [[3.0, 4.0], [0.0, 0.5]]),
        ({"clipnorm": 1.0}, [[0.6, 0.8], [0.0, 0.5]]),
        ({"global_clipnorm": 101**0.5 / 4}, [[1.5, 2.0], [0.0, 0.25]]),
        ({"clipvalue": 0.4}, [[0.4, 0.4], [0.0, 0.4]]),
    ],
    ids=str,
)
def test_clipped_are_the_gradients_of_the_update(setting, expected):
    optimizer = keras.optimizers.SGD(1.0, **setting)
    gradients = [ops.convert_to_tensor(each) for each in ([3.0, 4.0], [0.0, 0.5])]
    clipped = keras_internals.clipped(optimizer, gradients, variables())
    for each, found in zip(expected, clipped, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(found), each, rtol=1e-6)


@needs_multi_optimizer
def test_clipped_by_a_multi_optimizer_are_those_of_each_optimizer():
    weights = variables(3)
    clips = keras.optimizers.SGD(1.0, global_clipnorm=0.5)
    others = keras.optimizers.SGD(1.0)
    optimizer = keras.optimizers.MultiOptimizer(lambda v: others if v is weights[1] else clips)
    gradients = [ops.convert_to_tensor(each) for each in ([3.0, 0.0], [5.0, 0.0], [0.0, 4.0])]
    clipped = keras_internals.clipped(optimizer, gradients, weights)
    expected = [[0.3, 0.0], [5.0, 0.0], [0.0, 0.4]]
    np.testing.assert_allclose([ops.convert_to_numpy(c) for c in clipped], expected, rtol=1e-6)


def test_accumulated_is_what_keras_adds_to_the_next_gradient():
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=3)
    optimizer.build(weights := variables())
    seen = []
    for _ in range(4):
        sums, closes = keras_internals.accumulated(optimizer, weights[1:])
        (total,) = (float(ops.convert_to_numpy(each)[0]) for each in sums)
        seen.append((total, bool(closes), keras_internals.is_accumulating(optimizer)))
        optimizer.apply(ones(), weights)
    assert seen == [(0, False, False), (1, False, True), (2, True, True), (0, False, False)]
    np.testing.assert_allclose(ops.convert_to_numpy(weights[0]), [-1, -1])


def test_update_step_replaced_is_one_call_between_clipping_and_averages():
    optimizer = keras.optimizers.SGD(0.25, clipvalue=0.5, use_ema=True, ema_momentum=0.0)
    optimizer.build(weights := variables())
    calls = []

    def update(gradients, given, rate):
        calls.append(([*map(id, given)], float(rate)))
        for gradient, variable in zip(gradients, given, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(gradient), [0.5, 0.5])
            variable.assign(ops.full((2,), 7.0))

    with keras_internals.update_step_replaced(optimizer, update) as own:
        optimizer.apply(ones(), weights)
    assert calls == [([*map(id, weights)], 0.25)]
    assert int(optimizer.iterations.value) == 1
    averages = [v for v in optimizer.variables if "average" in v.path]
    np.testing.assert_array_equal(ops.convert_to_numpy(averages[0].value), [7, 7])
    optimizer.apply(ones(), weights)  # its own step again
    np.testing.assert_allclose(ops.convert_to_numpy(weights[0].value), [6.875, 6.875])
    assert len(calls) == 1
    own([ops.ones(2)], weights[:1], 1.0)
    np.testing.assert_allclose(ops.convert_to_numpy(weights[0].value), [5.875, 5.875])


def test_accumulator_of_is_the_sum_of_squares_of_an_adagrad():
    optimizer = keras.optimizers.Adagrad(0.5, initial_accumulator_value=0.0)
    optimizer.build(weights := variables())
    optimizer.apply([ops.full((2,), 3.0) for _ in weights], weights)
    accumulator = keras_internals.accumulator_of(optimizer, weights[0])
    assert accumulator is not None
    np.testing.assert_array_equal(ops.convert_to_numpy(accumulator.value), [9, 9])
    sgd = keras.optimizers.SGD(0.5)
    assert keras_internals.accumulator_of(sgd, weights[0]) is None


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras sums over replicas on TensorFlow alone")
def test_skip_reduction_leaves_out_the_sum_over_replicas():
    seen = []

    class Sums(keras.optimizers.SGD):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            seen.append([len(pair) for pair in grads_and_vars])
            return super()._all_reduce_sum_gradients(grads_and_vars)

    optimizer = Sums(1.0)
    optimizer.build(weights := variables())
    with keras_internals.skip_reduction(optimizer):
        optimizer.apply(ones(), weights)
    assert seen == []
    np.testing.assert_array_equal(weights[1].numpy(), [0, 0])
    optimizer.apply(ones(), weights)
    assert seen == [[2, 2]]
    optimizer._all_reduce_sum_gradients = kept = lambda grads_and_vars: grads_and_vars
    with keras_internals.skip_reduction(optimizer):
        pass
    assert optimizer._all_reduce_sum_gradients is kept


def test_joint_update_gets_all_variables_in_one_call():
    calls = []

    class Joint(keras_internals.JointUpdate):
        def _update_jointly(self, grads, trainable_variables, learning_rate):
            places = [*map(id, trainable_variables)]
            calls.append(([tuple(g.shape) for g in grads], places, float(learning_rate)))

    optimizer = Joint(0.5)
    optimizer.build(weights := variables())
    optimizer.apply(ones(), weights)
    assert [shapes for shapes, _, _ in calls] == [[(2,), (2,)]]
    assert calls[0][1:] == ([*map(id, weights)], 0.5)
    optimizer.update_step(ops.ones(2), weights[1], 0.5)
    assert calls[1][1] == [id(weights[1])]


def test_shows_inner_averages_where_swapping_callbacks_look():
    class Wrapper(keras_internals.ShowsInnerAverages):
        def __init__(self, inner):
            super().__init__(learning_rate=0.0, name="wrapper")
            self.inner_optimizer = inner

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    inner = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    model.compile(inner, "mse")
    inner.build(model.trainable_variables)
    model.optimizer = Wrapper(inner)
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(model)
    weight = model.trainable_variables[0]
    average = next(v for v in inner.variables if "average" in v.path)
    weight.assign(ops.ones((2, 1)))
    callback.on_epoch_begin(0)
    callback.on_test_begin()
    callback.on_epoch_end(0)
    both = [ops.convert_to_numpy(v.value)[0, 0] for v in (weight, average)]
    assert 1.0 in both
    assert both[0] != both[1]
