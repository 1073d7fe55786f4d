"""What `fit` offers works with windows, and gives the weights of the large batch."""

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tests.marks import thorough_but
from tests.models import assert_same_weights, data, fit, network

BACKEND = keras.config.backend()


def adam(learning_rate=0.05):
    return keras.optimizers.Adam(learning_rate)


def ranger(accumulation_steps=3, inner=None, **settings):
    return RangerOptimizer(inner=inner or adam(), accumulation_steps=accumulation_steps, **settings)


COMPILE = {
    "jit_compile": {"jit_compile": True},
    "no jit_compile": {"jit_compile": False},
    "run_eagerly": {"run_eagerly": True, "jit_compile": False},
    "steps_per_execution": {"steps_per_execution": 5},
}
QUICK = [*COMPILE.values()]
if BACKEND == "torch":
    del COMPILE["steps_per_execution"]  # Keras refuses it on PyTorch
    QUICK.remove(COMPILE["jit_compile"])  # half a minute: test_microbatch_fit.py has one


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch.compile's own modules
@pytest.mark.parametrize("settings", thorough_but(QUICK, COMPILE.values()), ids=COMPILE)
def test_compile_settings(settings):
    x, y = data()
    model = network(ranger(), **settings)
    fit(model, x, y, batch_size=4, epochs=2)
    expected = network(adam())
    fit(expected, x, y, batch_size=12, epochs=2)
    assert_same_weights(model, expected)


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "mixed_bfloat16"])
def test_narrow_policies(policy):
    keras.config.set_dtype_policy(policy)
    try:
        x, y = data()
        model = network(ranger(inner=keras.optimizers.SGD(0.1, momentum=0.9)))
        wrapped = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert wrapped is (policy == "mixed_float16")
        initial = model.get_weights()
        history = fit(model, x, y, batch_size=4, epochs=2).history
    finally:
        keras.config.set_dtype_policy("float32")
    expected = network(keras.optimizers.SGD(0.1, momentum=0.9))
    expected.set_weights(initial)  # a narrow initializer draws other numbers
    fit(expected, x, y, batch_size=12, epochs=2)
    assert int(model.optimizer.iterations) == 8
    assert np.isfinite(history["loss"]).all()
    for actual, reference in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(actual.astype("float32"), reference, atol=0.02)


def test_a_loss_scale_is_undone():
    x, y = data()
    model = network(ranger(inner="sgd", learning_rate=0.1, loss_scale_factor=1024.0))
    fit(model, x, y, batch_size=4)
    expected = network(keras.optimizers.SGD(0.1, momentum=0.9))
    fit(expected, x, y, batch_size=12)
    assert_same_weights(model, expected)


def test_the_outer_loss_scale_skips_what_overflows():
    x, y = data()
    outer = keras.optimizers.LossScaleOptimizer(ranger(), initial_scale=2.0**127)
    model = network(outer)
    before = model.get_weights()
    model.train_on_batch(1e3 * x[:4], 1e3 * y[:4])
    for actual, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert outer.inner_optimizer.pending_micro_batches == 0
    assert float(keras.ops.convert_to_numpy(outer.dynamic_scale.value)) == 2.0**126


def test_frozen_layers_stay():
    def frozen(optimizer):
        model = network(optimizer)
        model.layers[0].trainable = False
        model.compile(optimizer=optimizer, loss="mse")
        return model

    x, y = data()
    model = frozen(ranger())
    before = model.layers[0].get_weights()
    fit(model, x, y, batch_size=4)
    expected = frozen(adam())
    fit(expected, x, y, batch_size=12)
    assert_same_weights(model, expected)
    np.testing.assert_array_equal(model.layers[0].get_weights()[0], before[0])


def test_a_learning_rate_callback_sets_the_next_update():
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    x, y = data()
    model = network(ranger())
    history = fit(model, x, y, batch_size=4, epochs=3, callbacks=[scheduler]).history
    expected = network(adam())
    plain = fit(expected, x, y, batch_size=12, epochs=3, callbacks=[scheduler]).history
    np.testing.assert_allclose(history["learning_rate"], plain["learning_rate"])
    assert_same_weights(model, expected)


def test_reduce_on_plateau_lowers_the_learning_rate():
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=1, min_delta=1e9
    )
    x, y = data()
    model = network(ranger(inner=adam(0.08)))
    fit(model, x, y, batch_size=4, epochs=3, callbacks=[plateau])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)


def test_a_callback_changes_accumulation_steps_without_a_trace():
    traces = []

    class Dense(keras.layers.Dense):
        def call(self, inputs, training=None):
            traces.append(training)
            return super().call(inputs)

    class Grow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.seen = len(traces)
            self.model.optimizer.accumulation_steps = 2 * (epoch + 1)

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), Dense(2)])
    model.compile(ranger(1), "mse")
    x, y = data()
    grow = Grow()
    fit(model, x, y, batch_size=4, epochs=2, callbacks=[grow])
    assert int(model.optimizer.iterations) == 6 + 3
    assert len(traces) == grow.seen or BACKEND == "torch"


def test_sparse_gradients_touch_their_rows_only():
    def embedding(optimizer):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                keras.layers.Embedding(20, 4),
                keras.layers.Flatten(),
            ]
        )
        model.add(keras.layers.Dense(1))
        model.compile(optimizer=optimizer, loss="mse")
        return model

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 10, (24, 3)), rng.normal(size=(24, 1))
    model = embedding(ranger(inner=keras.optimizers.SGD(0.1)))
    before = model.get_weights()[0]
    fit(model, x, y, batch_size=4)
    expected = embedding(keras.optimizers.SGD(0.1))
    fit(expected, x, y, batch_size=12)
    assert_same_weights(model, expected)
    np.testing.assert_array_equal(model.get_weights()[0][10:], before[10:])
    assert np.abs(model.get_weights()[0][:10] - before[:10]).min() > 0


def test_a_saved_average_of_weights_ends_in_the_model():
    def inner():
        return keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)

    x, y = data()
    model, expected = network(ranger(inner=inner())), network(inner())
    swap = keras.callbacks.SwapEMAWeights()
    fit(model, x, y, 4, callbacks=[swap], validation_data=(x, y))
    fit(expected, x, y, 12, callbacks=[keras.callbacks.SwapEMAWeights()], validation_data=(x, y))
    assert_same_weights(model, expected)


def test_left_out_micro_batches_are_told_when_fit_ends():
    x, y = data()
    x[5] = np.nan
    model = network(ranger())
    with pytest.warns(UserWarning, match="Left out 1 micro-batch"):
        fit(model, x, y, batch_size=4)
    assert np.isfinite(np.concatenate([w.ravel() for w in model.get_weights()])).all()
    expected = network(adam())
    kept = np.r_[0:4, 8:48]
    fit(expected, x[kept], y[kept], batch_size=12)
    assert_same_weights(model, expected)


def test_an_error_in_fit_is_the_error_shown():
    def broken(y_true, y_pred):
        raise RuntimeError("my loss is broken")

    model = network(ranger(), loss=broken)
    with pytest.raises(RuntimeError, match="my loss is broken"):
        fit(model, *data(), batch_size=4)


def test_dropout_and_batch_normalization_train():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2),
        ]
    )
    model.compile(ranger(), "mse")
    losses = fit(model, *data(), batch_size=8, epochs=20).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
