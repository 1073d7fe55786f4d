"""Contract: Keras keeps, matches and adds up losses as `keras_internals` takes it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger.backend import keras_internals

X = np.arange(6, dtype="float32").reshape(3, 2)
Y = {"a": np.ones((3, 1), "float32"), "b": np.zeros((3, 2), "float32")}


def two_outputs(**compiled):
    inputs = keras.Input((2,))
    outputs = {"a": layers.Dense(1, name="a")(inputs), "b": layers.Dense(2, name="b")(inputs)}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"a": "mse", "b": "mae"}, **compiled)
    keras_internals.build(model, (X, Y, None))
    return model


def test_compiled_loss_is_none_without_a_loss():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd")
    assert keras_internals.compiled_loss(model) is None


def test_loss_records_name_each_loss_its_weight_and_its_output():
    model = two_outputs(loss_weights={"a": 2.0, "b": 3.0})
    records = keras_internals.loss_records(keras_internals.compiled_loss(model))
    assert [record.name for record in records] == ["a", "b"]
    assert [record.path for record in records] == [("a",), ("b",)]
    assert [record.loss_weights for record in records] == [2.0, 3.0]
    y_true, y_pred = ops.zeros((1, 2)), ops.convert_to_tensor([[1.0, 3.0]])
    assert [float(record.loss(y_true, y_pred)) for record in records] == [5.0, 2.0]


def test_with_losses_matches_adds_up_and_leaves_the_model_s_own_alone():
    model = two_outputs(loss_weights={"a": 2.0, "b": 3.0})
    compiled = keras_internals.compiled_loss(model)
    given = []

    def loss_of(value):
        def loss(y_true, y_pred, sample_weight=None):
            given.append((tuple(y_true.shape), tuple(y_pred.shape), sample_weight is not None))
            return ops.full((), value)

        return loss

    copied = keras_internals.with_losses(compiled, [loss_of(10.0), loss_of(100.0)])
    y_pred = {"a": ops.zeros((3, 1)), "b": ops.zeros((3, 2))}
    weight = {"a": ops.ones(3), "b": ops.ones(3)}
    before = [float(metric.result()) for metric in compiled.metrics]
    y = keras.tree.map_structure(ops.convert_to_tensor, Y)
    assert float(copied(y, y_pred, weight)) == pytest.approx(2 * 10 + 3 * 100)
    assert given == [((3, 1), (3, 1), True), ((3, 2), (3, 2), True)]
    assert [float(metric.result()) for metric in compiled.metrics] == before
    assert float(compiled(y, y_pred)) == pytest.approx(2 * 1)  # its own losses


def test_with_losses_can_take_one_of_one_output():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    keras_internals.build(model, (X, Y["a"], None))
    compiled = keras_internals.compiled_loss(model)
    copied = keras_internals.with_losses(compiled, [lambda y_true, y_pred, weight: ops.full((), 7)])
    assert float(copied(ops.ones((3, 1)), ops.ones((3, 1)))) == 7.0


@pytest.mark.parametrize("stateless", [False, True])
def test_own_losses_are_those_of_the_layer_that_added_them(stateless):
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(ops.sum(x))
            return x

    inner = Adds()
    outer = keras.Sequential([keras.Input((2,)), inner, layers.Dense(1, kernel_regularizer="l2")])

    def check():
        outer(ops.ones((1, 2)))
        (found,) = keras_internals.own_losses(inner)
        assert float(found) == 2.0
        assert keras_internals.own_losses(outer) == []
        assert len(outer.losses) == 2
        assert any(loss is found for loss in outer.losses)

    if stateless:
        with keras.StatelessScope([(v, v.value) for v in outer.variables], collect_losses=True):
            check()
    else:
        check()


def test_forget_losses_lets_a_number_added_again_count_once():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1), layers.Dense(1)])
    first, second = model.layers
    loss = ops.ones(())
    with keras.StatelessScope([], collect_losses=True):
        first.add_loss(loss)
        assert len(model.losses) == 1
    with keras.StatelessScope([], collect_losses=True):
        keras_internals.forget_losses(model)
        second.add_loss(loss)
        assert keras_internals.own_losses(first) == []
        assert len(model.losses) == 1


def test_added_loss_value_is_the_sum_as_a_float():
    model = two_outputs()
    assert float(keras_internals.added_loss_value(model, ops.convert_to_tensor([1.0, 2.0]))) == 3.0
    integers = ops.convert_to_tensor([1, 2], dtype="int32")
    value = keras_internals.added_loss_value(model, integers)
    assert keras.backend.standardize_dtype(value.dtype) == keras.config.floatx()


@pytest.mark.parametrize("takes_training", [False, True])
def test_computed_loss_calls_what_the_model_overrides(takes_training):
    seen = []

    class Old(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            seen.append(None)
            return super().compute_loss(x, y, y_pred, sample_weight)

    class New(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            seen.append(training)
            return super().compute_loss(x, y, y_pred, sample_weight)

    model = (New if takes_training else Old)([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    keras_internals.build(model, (X, Y["a"], None))
    seen.clear()
    loss = keras_internals.computed_loss(
        model,
        ops.ones((2, 2)),
        ops.zeros((2, 1)),
        ops.convert_to_tensor([[1.0], [3.0]]),
        ops.convert_to_tensor([1.0, 0.0]),
    )
    assert float(loss) == pytest.approx(0.5)
    assert seen == [True if takes_training else None]


def test_track_loss_is_the_mean_that_is_reported():
    model = two_outputs()
    keras_internals.track_loss(model, ops.full((), 1.0), 1)
    keras_internals.track_loss(model, ops.full((), 4.0), 2)
    assert float(model.get_metrics_result()["loss"]) == pytest.approx(3.0)
