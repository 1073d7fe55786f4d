"""Keras' own callbacks, which look through no more than one wrapper."""

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tests.marks import first, needs_multi_optimizer
from tests.models import assert_same_weights, data, fit, network

BACKEND = keras.config.backend()


def adam(**settings):
    return keras.optimizers.Adam(0.05, name="adam", **settings)


def several(**settings):
    biases = keras.optimizers.SGD(0.05, name="biases", **settings)
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(**settings), {".*bias": biases})
    )


def scaled(optimizer):
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)


def plain(optimizer):
    return optimizer


def compiled(optimizer):
    # Callbacks run outside the step, so TensorFlow need not spend its time on graphs.
    return network(optimizer, run_eagerly=BACKEND == "tensorflow")


def trained(make, wrap, accumulation_steps, callbacks=(), **settings):
    """Return a model trained on batches of 24, and its `History`; None trains without a window."""
    optimizer = make(**settings)
    if accumulation_steps is not None:
        optimizer = RangerOptimizer(inner=optimizer, accumulation_steps=accumulation_steps)
    x, y = data()
    model = compiled(wrap(optimizer))
    history = fit(
        model,
        x,
        y,
        24 // (accumulation_steps or 1),
        epochs=2,
        validation_data=(x[:6], y[:6]),
        callbacks=[callback() for callback in callbacks],
    )
    return model, history.history


def assert_as_plain_keras(make, wrap, callback, **settings):
    expected, expected_history = trained(make, wrap, None, [callback], **settings)
    model, history = trained(make, wrap, 4, [callback], **settings)
    assert_same_weights(model, expected, 1e-5)
    for name in history.keys() - {"loss"}:  # the training loss is that of the weights so far
        np.testing.assert_allclose(history[name], expected_history[name], rtol=1e-4)


# Without the fourth: Keras' own LossScaleOptimizer around a MultiOptimizer has no learning rate.
WRAPPED = [(adam, plain), (adam, scaled), pytest.param(several, plain, marks=needs_multi_optimizer)]


@pytest.mark.parametrize(
    ("make", "wrap", "swap_on_epoch"),
    [
        (adam, plain, True),
        (adam, scaled, True),
        (adam, scaled, False),
        pytest.param(several, scaled, True, marks=needs_multi_optimizer),
    ],
)
def test_swap_ema_weights(make, wrap, swap_on_epoch):
    def swap():
        return keras.callbacks.SwapEMAWeights(swap_on_epoch)

    assert_as_plain_keras(make, wrap, swap, use_ema=True, ema_momentum=0.5)


def test_swap_ema_weights_without_averages_says_so():
    with pytest.raises(ValueError, match="must be used when `use_ema=True`"):
        trained(adam, scaled, 4, [keras.callbacks.SwapEMAWeights])


def rates_by_epoch():
    return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)


def less_on_plateau():
    return keras.callbacks.ReduceLROnPlateau(monitor="val_loss", min_delta=10.0, patience=1)


@pytest.mark.parametrize("callback", [rates_by_epoch, less_on_plateau])
@pytest.mark.parametrize(("make", "wrap"), WRAPPED)
def test_learning_rates(make, wrap, callback):
    assert_as_plain_keras(make, wrap, callback)


@first
@pytest.mark.parametrize(
    ("make", "wrap"), [*WRAPPED, pytest.param(several, scaled, marks=needs_multi_optimizer)]
)
def test_tensor_board_logs_learning_rates(make, wrap, tmp_path):
    logged = []
    for steps in (None, 4):
        directory = tmp_path / str(steps)
        trained(make, wrap, steps, [lambda path=directory: keras.callbacks.TensorBoard(path)])
        logged.append(learning_rates(directory / "train"))
    assert logged[0] == logged[1]
    assert logged[0]


def learning_rates(directory):
    """Return the learning rates that TensorBoard's files hold, by tag and epoch."""
    import tensorflow as tf

    found = {}
    for path in directory.iterdir():
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if "learning_rate" in value.tag:
                    found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


@pytest.mark.parametrize(("make", "wrap"), WRAPPED)
def test_backup_and_restore_goes_on_in_mid_window(make, wrap, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise RuntimeError("stopped")

    def run(*callbacks):
        x, y = data()
        optimizer = RangerOptimizer(inner=make(), accumulation_steps=5)
        model = compiled(wrap(optimizer))
        fit(model, x, y, 6, epochs=2, callbacks=callbacks)
        return model

    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        run(backup, Stop())
    assert_same_weights(run(keras.callbacks.BackupAndRestore(tmp_path)), run(), 1e-6)
