"""Contract: what Keras keeps with tensors and variables is as `keras_internals` takes it."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.backend import keras_internals

BACKEND = keras.config.backend()


def test_get_mask_reads_what_a_layer_sets():
    embedded = keras.layers.Embedding(3, 2, mask_zero=True)(np.array([[1, 0]]))
    np.testing.assert_array_equal(keras_internals.get_mask(embedded), [[True, False]])
    assert keras_internals.get_mask(keras.ops.ones(2)) is None


def test_set_mask_is_what_a_loss_looks_at():
    y_pred = keras.ops.convert_to_tensor([[1.0], [5.0]])
    keras_internals.set_mask(y_pred, keras.ops.convert_to_tensor([True, False]))
    y_true = keras.ops.zeros((2, 1))
    assert float(keras.losses.MeanSquaredError()(y_true, y_pred)) == pytest.approx(1.0)


def test_layout_of_is_none_without_a_distribution():
    assert keras_internals.layout_of(keras.Variable(np.zeros(2))) is None
    assert keras_internals.layout_of(np.zeros(2)) is None


@pytest.mark.skipif(BACKEND != "jax", reason="layouts of variables are told on JAX alone")
def test_layout_of_is_what_the_distribution_gave_and_another_variable_takes():
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), devices=["cpu:0"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    with distribution.scope():
        (kernel,) = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).weights[:1]
        layout = keras_internals.layout_of(kernel)
        slot = keras.Variable(np.zeros((2, 1)), layout=layout)
    assert layout is not None
    # Older Keras gives what JAX takes, newer a `TensorLayout`.
    axes = layout.spec if hasattr(layout, "spec") else layout.axes
    assert tuple(axes) == (None, "model")
    assert keras_internals.layout_of(slot) is layout


@pytest.mark.skipif(BACKEND != "jax", reason="layouts of variables are told on JAX alone")
def test_layout_map_is_that_of_model_parallel():
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), devices=["cpu:0"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = ("model", None)
    distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    assert keras_internals.layout_map(distribution) is layouts
    assert keras_internals.layout_map(keras.distribution.DataParallel(devices=["cpu:0"])) is None
    assert keras_internals.layout_map(None) is None


def test_rows_of_state_lets_a_stateful_layer_run_on_fewer_samples():
    inputs = keras.Input(batch_shape=(4, 3, 2))
    layer = keras.layers.SimpleRNN(5, stateful=True)
    model = keras.Model(inputs, layer(inputs))
    (state,) = layer.states
    with (
        keras_internals.rows_of_state([layer], [state], 2),
        keras.StatelessScope([(state, keras.ops.zeros((2, 5)))]) as scope,
    ):
        model(np.ones((2, 3, 2)))
    assert scope.get_current_value(state).shape == (2, 5)
    assert tuple(state.shape) == (4, 5)
    with pytest.raises(ValueError, match="must be the same as the batch size"):
        model(np.ones((2, 3, 2)))
