"""NoiseScale: what it logs is the twin's, for what the model's micro-batches were."""

import json
import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import tensorflow_ranger as ranger
from tensorflow_ranger.training.microbatch import install
from tests.marks import first
from tests.models import assert_same_weights, data, fit, network
from tests.references import noise_scale as reference

DIMENSIONS = 12
RATE = 0.05
SAMPLES = 96
BATCH = 32
X = np.random.default_rng(0).normal(0.4, 1.0, (SAMPLES, DIMENSIONS)).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class Centre(keras.layers.Layer):
    """The squared distance to a learned centre: a sample's gradient is ``centre - x``."""

    def build(self, shape):
        self.centre = self.add_weight(shape=(DIMENSIONS,), initializer="zeros", name="centre")

    def call(self, inputs):
        return ops.sum(ops.square(inputs - self.centre), -1, keepdims=True) / 2


def distance(y_true, y_pred):
    return y_pred[:, 0]


def centre_model(optimizer):
    model = keras.Sequential([keras.Input((DIMENSIONS,)), Centre()])
    model.compile(optimizer, loss=distance, jit_compile=False)
    return model


def sgd():
    return keras.optimizers.SGD(RATE)


def fused(size, batch_size=BATCH):
    """Return a model whose batches of 32 are cut, and the arguments of its `fit`."""
    return ranger.microbatch(centre_model(sgd()), size), {"batch_size": batch_size}


def streaming(size, batch_size=BATCH):
    """Return a model whose windows have the samples of a batch of `fused`."""
    optimizer = ranger.RangerOptimizer(inner=sgd(), accumulation_steps=batch_size // size)
    return centre_model(optimizer), {"batch_size": size}


def twin(size, epochs, memory, batch_size=BATCH, samples=SAMPLES):
    """Return the estimate after each epoch, and the weights, of SGD in NumPy."""
    centre = np.zeros(DIMENSIONS)
    windows, estimates = [], []
    for _ in range(epochs):
        for start in range(0, samples, batch_size):
            batch = X[start : min(start + batch_size, samples)].astype("float64")
            parts = [batch[i : i + size] for i in range(0, len(batch), size)]
            gradients = [centre - part.mean(0) for part in parts]
            if len(parts) > 1:
                windows.append(reference.window(gradients, [len(part) for part in parts]))
            centre = centre - RATE * (centre - batch.mean(0))
        estimates.append(reference.estimate(windows, memory))
    return estimates, centre


def train(model, arguments, callback, epochs=3, samples=SAMPLES):
    targets = np.zeros((samples, 1), "float32")
    return fit(model, X[:samples], targets, epochs=epochs, callbacks=[callback], **arguments)


def assert_logged(history, estimates, tolerance=1e-3):
    for name, place in (("noise_scale", 0), ("noise_scale_low", 1), ("noise_scale_high", 2)):
        logged = np.minimum(history[name], 1e9)
        np.testing.assert_allclose(logged, [each[place] for each in estimates], rtol=tolerance)


@pytest.mark.parametrize("make", [fused, streaming])
def test_history_holds_the_twins_estimates(make):
    model, arguments = make(8)
    callback = ranger.callbacks.NoiseScale(None if make is fused else 8, memory=5)
    history = train(model, arguments, callback).history
    estimates, centre = twin(8, 3, memory=5)
    assert_logged(history, estimates)
    np.testing.assert_allclose(model.get_weights()[0], centre, rtol=1e-5)
    estimate: Any = callback.estimate
    assert estimate.effective_batch == pytest.approx(BATCH)
    assert history["advised_batch"][-1] == pytest.approx(estimates[-1][0], rel=0.05)


@pytest.mark.parametrize("loop", ["host", "device"])
def test_uneven_micro_batches(loop):
    if loop == "device" and keras.config.backend() == "torch":
        loop = None
    model = install(centre_model(sgd()), 7, loop=loop)
    history = train(model, {"batch_size": 30}, ranger.callbacks.NoiseScale(memory=50))
    assert_logged(history.history, twin(7, 3, memory=50, batch_size=30)[0])


def test_masses_that_differ():
    """Micro-batches of 4 and 12 samples, told to the optimizer, are weighed as they should be."""
    optimizer = ranger.RangerOptimizer(inner=sgd(), accumulation_steps=2)
    variable = keras.Variable(np.zeros(DIMENSIONS), dtype="float32")
    optimizer.build([variable])
    optimizer.measure_noise()
    centre, windows = np.zeros(DIMENSIONS), []
    for start in range(0, SAMPLES, 16):
        parts = [X[start : start + 4], X[start + 4 : start + 16]]
        gradients = [centre - part.mean(0) for part in parts]
        windows.append(reference.window(gradients, [4, 12]))
        for gradient, part in zip(gradients, parts, strict=True):
            optimizer.apply([ops.convert_to_tensor(gradient, "float32")], [variable], len(part))
        centre = centre - RATE * (centre - X[start : start + 16].mean(0))
    estimate: Any = optimizer.noise_scale
    scale, low, _, samples = reference.estimate(windows, 200)
    assert (estimate.scale, estimate.low) == pytest.approx((scale, low), rel=1e-3)
    assert estimate.effective_batch == pytest.approx(samples) == 16


@first
@pytest.mark.parametrize("make", [fused, streaming])
def test_a_scaled_loss_has_the_same_noise(make):
    """Scaled by 2^15 at first; the mean square would change by 2^30."""
    model, arguments = make(8)
    model.compile(
        keras.optimizers.LossScaleOptimizer(model.optimizer, initial_scale=2.0**15),
        loss=distance,
        jit_compile=False,
    )
    history = train(model, arguments, ranger.callbacks.NoiseScale(8, memory=5)).history
    assert_logged(history, twin(8, 3, memory=5)[0])


@first
def test_summed_gradients_have_the_same_noise():
    optimizer = ranger.RangerOptimizer(
        inner=keras.optimizers.SGD(RATE / BATCH), accumulation_steps=4, reduction="sum"
    )
    model = centre_model(optimizer)
    model.compile(optimizer, loss=SummedDistance(reduction="sum"), jit_compile=False)
    callback = ranger.callbacks.NoiseScale(8, memory=5)
    history = train(model, {"batch_size": 8}, callback).history
    assert_logged(history, twin(8, 3, memory=5)[0])


class SummedDistance(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return y_pred[:, 0]


@first
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_measuring_does_not_change_the_weights(momentum):
    x, y = data()
    models = [ranger.microbatch(network(keras.optimizers.SGD(0.1, momentum)), 8) for _ in range(2)]
    for model, callbacks in zip(models, ([], [ranger.callbacks.NoiseScale()]), strict=True):
        fit(model, x, y, 24, epochs=3, callbacks=callbacks)
    assert_same_weights(*models)


def test_a_bad_micro_batch_does_not_count():
    model, arguments = streaming(8)
    x = X.copy()
    x[8:16] = np.nan
    callback = ranger.callbacks.NoiseScale(8)
    with pytest.warns(UserWarning, match="Left out 1 micro-batch"):
        fit(model, x, np.zeros((SAMPLES, 1)), callbacks=[callback], **arguments)
    estimate: Any = callback.estimate
    assert math.isfinite(estimate.scale)
    assert estimate.windows == 2  # of 11 micro-batches; three are left


def test_one_micro_batch_shows_no_noise(capsys):
    model, arguments = fused(BATCH)
    callback = ranger.callbacks.NoiseScale()
    history = train(model, arguments, callback).history
    assert np.isnan(history["noise_scale"]).all()
    assert np.isnan(history["advised_batch"]).all()
    assert "Give microbatch a smaller size" in capsys.readouterr().out


def test_windows_of_several_batches_are_counted_whole():
    optimizer = ranger.RangerOptimizer(inner=sgd(), accumulation_steps=3)
    model = ranger.microbatch(centre_model(optimizer), 8)
    callback = ranger.callbacks.NoiseScale(verbose=False)
    train(model, {"batch_size": BATCH}, callback, epochs=1)
    estimate: Any = callback.estimate
    assert estimate.effective_batch == pytest.approx(3 * BATCH)
    assert callback.advice.startswith("Your effective batch of 96 samples")


def test_a_window_that_no_epoch_fills_is_seen_when_fit_ends():
    optimizer = ranger.RangerOptimizer(inner=sgd(), accumulation_steps=100)
    callback = ranger.callbacks.NoiseScale(8, verbose=False)
    train(centre_model(optimizer), {"batch_size": 8}, callback, epochs=1)
    estimate: Any = callback.estimate
    assert estimate.effective_batch == pytest.approx(SAMPLES)
    assert "The data set is no larger than this batch" in callback.advice


@first
@pytest.mark.parametrize("make", [fused, streaming])
def test_memory_may_change_between_fits(make):
    model, arguments = make(8)
    for memory in (50, 2):
        callback = ranger.callbacks.NoiseScale(8, memory=memory, verbose=False)
        history = train(model, arguments, callback).history
    estimates, _ = twin(8, 6, memory=2)
    # Two windows reach back: what the first fit averaged is forgotten by half with each.
    np.testing.assert_allclose(history["noise_scale"][-1], estimates[-1][0], rtol=0.05)


@first
def test_the_averages_go_on_in_the_next_fit():
    model, arguments = fused(8)
    callback = ranger.callbacks.NoiseScale(memory=5)
    train(model, arguments, callback, epochs=1)
    step = model.train_function
    history = train(model, arguments, callback, epochs=2).history
    assert model.train_function is step  # nothing is compiled again
    assert_logged(history, twin(8, 3, memory=5)[0][1:])


@first
def test_the_averages_go_on_in_another_model_when_they_are_assigned():
    model, arguments = fused(8)
    first, second = ranger.callbacks.NoiseScale(memory=5), ranger.callbacks.NoiseScale(memory=5)
    assert first.averages is None
    train(model, arguments, first, epochs=1)
    loaded, _ = fused(8)
    loaded.set_weights(model.get_weights())
    second.averages = json.loads(json.dumps(first.averages))
    history = train(loaded, arguments, second, epochs=2).history
    assert_logged(history, twin(8, 3, memory=5)[0][1:])
    train(loaded, arguments, second, epochs=1)  # what was assigned is not taken twice
    estimate: Any = second.estimate
    assert estimate.windows == 12


def test_a_ranger_optimizer_saves_its_averages_itself():
    model, arguments = streaming(8)
    callback = ranger.callbacks.NoiseScale(8)
    train(model, arguments, callback, epochs=1)
    assert callback.averages is None


def test_later_callbacks_see_the_scale():
    """As Keras' TensorBoard does, which writes the logs of an epoch."""
    seen = {}
    later = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.update(logs))
    model, arguments = fused(8)
    callbacks = [ranger.callbacks.NoiseScale(), later]
    fit(model, X, np.zeros((SAMPLES, 1)), callbacks=callbacks, **arguments)
    assert seen["noise_scale"] == model.history.history["noise_scale"][0]


@first
def test_tensorboard_draws_the_scale(tmp_path):
    model, arguments = fused(8)
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    callbacks = [ranger.callbacks.NoiseScale(verbose=False), board]
    fit(model, X, np.zeros((SAMPLES, 1)), epochs=2, callbacks=callbacks, **arguments)
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    drawn = [make_ndarray(event.tensor_proto) for event in events.Tensors("epoch_noise_scale")]
    np.testing.assert_allclose(drawn, model.history.history["noise_scale"], rtol=1e-6)


@first
def test_validation_leaves_the_averages_alone():
    model, arguments = fused(8)
    targets = np.zeros((SAMPLES, 1), "float32")
    history = fit(
        model,
        X,
        targets,
        epochs=3,
        validation_data=(X, targets),
        callbacks=[ranger.callbacks.NoiseScale(memory=5)],
        **arguments,
    ).history
    assert_logged(history, twin(8, 3, memory=5)[0])
    assert not [name for name in history if name.startswith("val_") and "noise" in name]


@first
@pytest.mark.parametrize("make", [fused, streaming])
def test_a_data_set_smaller_than_the_window_is_told(make, capsys):
    model, arguments = make(8, batch_size=128)
    train(model, arguments, ranger.callbacks.NoiseScale(8), epochs=4)
    assert "The data set is no larger than this batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scale", "batch", "words"),
    [
        (
            320.0,
            2048.0,
            "Your effective batch of 2,048 samples is 6.4 times what this problem can use now "
            "(noise scale 320, 95 % range 256 to 384): 320 would take 1.7 times the updates and "
            "0.27 times the samples.",
        ),
        (
            1000.0,
            100.0,
            "Your effective batch of 100 samples is 10 times smaller than what this problem can "
            "use now (noise scale 1,000, 95 % range 800 to 1,200): 1,000 would take 0.18 times "
            "the updates and 1.8 times the samples.",
        ),
        (
            100.0,
            128.0,
            "Your effective batch of 128 samples is about what this problem can use now (noise "
            "scale 100, 95 % range 80 to 120).",
        ),
    ],
)
def test_advice(scale, batch, words):
    from tensorflow_ranger.batch_size.noise_scale import NoiseEstimate

    callback = ranger.callbacks.NoiseScale(32)
    callback.estimate = NoiseEstimate(scale, 0.8 * scale, 1.2 * scale, batch, 10)
    assert callback.advice == words


def test_a_gradient_behind_the_noise_asks_for_a_larger_batch():
    from tensorflow_ranger.batch_size.noise_scale import NoiseEstimate

    callback = ranger.callbacks.NoiseScale()
    callback.estimate = NoiseEstimate(math.inf, 50.0, math.inf, 8.0, 10)
    assert "8 micro-batches is smaller than" in callback.advice


def test_a_model_without_micro_batches_is_refused():
    with pytest.raises(ValueError, match="Call microbatch"):
        train(centre_model(sgd()), {"batch_size": 8}, ranger.callbacks.NoiseScale())


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"memory": 0}, {"memory": 1}, {"batch_size": 2.5}]
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be"):
        ranger.callbacks.NoiseScale(**arguments)
