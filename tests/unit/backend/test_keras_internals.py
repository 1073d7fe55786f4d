"""What Keras does not export is as it was read: a test that fails names the function."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.backend import keras_internals


def test_get_mask_reads_what_a_layer_sets():
    embedded = keras.layers.Embedding(3, 2, mask_zero=True)(np.array([[1, 0]]))
    np.testing.assert_array_equal(keras_internals.get_mask(embedded), [[True, False]])
    assert keras_internals.get_mask(keras.ops.ones(2)) is None


def test_set_mask_is_what_a_loss_looks_at():
    y_pred = keras.ops.convert_to_tensor([[1.0], [5.0]])
    keras_internals.set_mask(y_pred, keras.ops.convert_to_tensor([True, False]))
    y_true = keras.ops.zeros((2, 1))
    assert float(keras.losses.MeanSquaredError()(y_true, y_pred)) == pytest.approx(1.0)


def test_is_saving_while_a_model_is_saved(tmp_path):
    seen = []

    class Watched(keras.Sequential):
        def get_compile_config(self):
            seen.append(keras_internals.is_saving())
            return super().get_compile_config()

    model = Watched([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    model.get_compile_config()
    assert seen == [True, False]


def test_as_fit_converts_gives_what_a_step_gets():
    x, y = np.arange(6.0).reshape(3, 2), {"a": [1, 2, 3]}
    weight = np.ones(3)
    given = keras_internals.as_fit_converts(x, {"a": np.array(y["a"])}, weight, 3)
    np.testing.assert_array_equal(given[0], x)
    assert keras.backend.standardize_dtype(given[0].dtype) == keras.config.floatx()
    np.testing.assert_array_equal(given[1]["a"], y["a"])
    np.testing.assert_array_equal(given[2]["a"], weight)


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
