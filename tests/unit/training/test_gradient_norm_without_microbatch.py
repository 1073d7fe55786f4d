"""GradientNorm in plain fit and with windows: what it logs is the float64 twin's."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import tensorflow_ranger as ranger
from tests.marks import first, first_but, needs_multi_optimizer, thorough_but
from tests.models import MODES, assert_same_weights, data, fit, network
from tests.references import gradient_norms as reference
from tests.unit.training.norms import (
    BACKEND,
    BATCH,
    CLIPPED,
    CLIPS,
    NAMES,
    RATE,
    assert_logged,
    linear,
    train,
)

PART = 8  # of a window of two, which is a batch of the twin


def windows(steps=2, **settings):
    """Return a `RangerOptimizer` around the twin's SGD."""
    inner = {name: settings.pop(name) for name in [*settings] if name.startswith(("clip", "glob"))}
    sgd = keras.optimizers.SGD(RATE, **inner)
    return ranger.RangerOptimizer(inner=sgd, accumulation_steps=steps, **settings)


def twin(size, epochs: Any = 3, **clip: Any):
    """Return what the twin logs of batches in micro-batches of `size`."""
    return reference.train(*data(), BATCH, size, RATE, epochs=epochs, **clip)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_plain_fit_logs_the_twins_norms(mode, clip):
    model = linear(keras.optimizers.SGD(RATE, **clip), **MODES[mode])
    expected = twin(BATCH, **clip)
    history = train(model)
    assert_logged(history, expected, [*NAMES, *(CLIPPED if clip else [])])
    assert [name for name in CLIPPED if name in history] == (CLIPPED if clip else [])
    for weight, value in zip(model.get_weights(), expected["weights"], strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", thorough_but([CLIPS[2]], CLIPS), ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_windows_log_the_twins_norms(mode, clip):
    model = linear(windows(**clip), **MODES[mode])
    assert_logged(
        train(model, batch_size=PART), twin(PART, **clip), [*NAMES, *(CLIPPED if clip else [])]
    )


@pytest.mark.parametrize("mode", MODES)
def test_windows_of_microbatch_have_all_micro_batches(mode):
    model = ranger.microbatch(linear(windows(global_clipnorm=2.0), **MODES[mode]), 4)
    assert_logged(train(model, batch_size=PART), twin(4, global_clipnorm=2.0))


@pytest.mark.parametrize("mode", MODES)
def test_keras_own_accumulation_logs_the_twins_norms(mode):
    clip = {"global_clipnorm": 2.0}
    optimizer = keras.optimizers.SGD(RATE, gradient_accumulation_steps=2, **clip)
    assert_logged(train(linear(optimizer, **MODES[mode]), batch_size=PART), twin(PART, **clip))


@pytest.mark.parametrize("steps", first_but([2], [1, 2]))
@pytest.mark.parametrize("size", [None, 4])
def test_the_loss_scale_is_no_part_of_a_norm(size, steps):
    clip = {"global_clipnorm": 2.0}
    inner = windows(steps, **clip) if steps > 1 else keras.optimizers.SGD(RATE, **clip)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**15)
    model = linear(scaled)
    if size:
        ranger.microbatch(model, size)
    history = train(model, batch_size=BATCH // steps)
    assert_logged(history, twin(size or BATCH // steps, **clip))


@first
def test_a_fixed_loss_scale_and_keras_own_accumulation():
    optimizer = keras.optimizers.SGD(RATE, gradient_accumulation_steps=2, loss_scale_factor=64.0)
    assert_logged(train(linear(optimizer), batch_size=PART), twin(PART), NAMES)


def test_a_mean_weighs_micro_batches_by_their_mass():
    x, y = data(24)
    model = linear(windows())
    gauge = ranger.callbacks.GradientNorm()
    gauge.set_model(model)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    first_rows = reference.train(x[:16], y[:16], 24, 16, 0.0, 1)["gradient_norm"]
    last_rows = reference.train(x[16:], y[16:], 24, 8, 0.0, 1)["gradient_norm"]
    expected = reference.train(x, y, 24, 16, 0.0, 1)
    norms = optimizer.measure_norms()
    values = reference.weights()
    with norms.during_training():
        for rows in (slice(0, 16), slice(16, 24)):
            error = 2 * (x[rows] @ values[0] + values[1] - y[rows]) / y[rows].size
            gradients = [x[rows].T @ error, error.sum(0)]
            gradients = [keras.ops.convert_to_tensor(g.astype("float32")) for g in gradients]
            optimizer.apply(gradients, model.trainable_variables, mass=float(len(x[rows])))
    logged = {name: float(value) for name, value in norms.logs().items()}
    mean = (16 * first_rows + 8 * last_rows) / 24
    np.testing.assert_allclose(logged["microbatch_gradient_norm"], mean, rtol=1e-5)
    np.testing.assert_allclose(logged["gradient_norm"], expected["gradient_norm"], rtol=1e-5)


def test_a_sum_adds_up_the_norms_of_its_micro_batches():
    model = linear(windows(reduction="sum"))
    model.compile(model.optimizer, keras.losses.MeanSquaredError("sum"), jit_compile=False)
    model.optimizer.learning_rate = RATE / BATCH
    history, expected = train(model, batch_size=PART), twin(PART)
    assert_logged(history, {name: BATCH * expected[name] for name in NAMES}, NAMES)


@first
@pytest.mark.parametrize(
    "changes", [{"centralize": True}, {"adaptive_clipping": ranger.AdaptiveGradientClipping(0.01)}]
)
def test_clipping_is_compared_with_what_is_clipped(changes):
    optimizer = windows(global_clipnorm=1e-3, **changes)
    history = train(linear(optimizer), epochs=1, batch_size=PART)
    # The first update's norm is the twin's; updates of this length hardly change the later ones.
    np.testing.assert_allclose(history["gradient_norm"], twin(PART, 1)["norms"][0].mean(), rtol=0.5)
    assert history["clipped_updates"] == [1]
    shaped = 1e-3 / (1 - np.array(history["clipped_fraction"]))
    assert (shaped < history["gradient_norm"]).all()


def test_a_micro_batch_that_is_left_out_and_the_rest_of_a_window_are_not_counted():
    x, y = data()
    y[PART + 1] = np.inf  # the second of six batches
    model = linear(windows())
    callbacks = [ranger.callbacks.GradientNorm()]
    with pytest.warns(UserWarning, match="Left out 1"):
        history = fit(model, x, y, PART, callbacks=callbacks).history
    kept = np.r_[:PART, 2 * PART : 5 * PART]
    expected = reference.train(x[kept], y[kept], BATCH, PART, RATE, 1)
    assert_logged(history, expected, NAMES)
    assert model.optimizer.iterations == 3


def test_a_window_spans_epochs():
    x, y = data(24)
    callbacks = [ranger.callbacks.GradientNorm()]
    for optimizer in (windows(), keras.optimizers.SGD(RATE, gradient_accumulation_steps=2)):
        model = linear(optimizer)
        history = fit(model, x, y, PART, 2, callbacks=callbacks).history
        order = np.r_[:24, :24]
        norms = reference.train(x[order], y[order], BATCH, PART, RATE, 1)
        logged = np.array([history[name] for name in NAMES])
        counts = [1, 2]  # updates that end in each epoch
        np.testing.assert_allclose(
            logged @ counts / 3, [norms[name][0] for name in NAMES], rtol=1e-4
        )
        np.testing.assert_allclose(logged[0, 0], norms["norms"][0, 0], rtol=1e-4)


@first
def test_a_window_that_was_begun_before_is_not_counted():
    x, y = data()
    for optimizer in (windows(3), keras.optimizers.SGD(RATE, gradient_accumulation_steps=3)):
        model = linear(optimizer)
        model.train_on_batch(x[:PART], y[:PART])
        history = fit(model, x, y, PART, callbacks=[ranger.callbacks.GradientNorm()]).history
        # Of six batches the first two close that window, and three fill another.
        first_update = np.r_[:PART, : 2 * PART]
        expected = reference.train(x[first_update], y[first_update], 3 * PART, PART, RATE, 1)
        later = linear("sgd")
        later.set_weights(expected["weights"])
        error = x[16:40] @ expected["weights"][0] + expected["weights"][1] - y[16:40]
        gradients = [x[16:40].T @ (error / error.size * 2), 2 * error.sum(0) / error.size]
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        np.testing.assert_allclose(history["gradient_norm"], norm, rtol=1e-4)


def tokens(optimizer, **settings):
    """Return a model whose table has rows that occur twice, and a batch for it."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None,), dtype="int32")
    vectors = layers.Embedding(50, 4)(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(vectors)))
    model.compile(optimizer, "mse", **settings)
    x = np.random.default_rng(0).integers(1, 6, (12, 5))
    return model, x, data(12)[1]


@pytest.mark.parametrize("clip", thorough_but([0.05], [None, 0.05]))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2])
def test_tables_of_rows(mode, clip, steps):
    def sgd(clip=None):
        return keras.optimizers.SGD(1.0, global_clipnorm=clip)

    moved = []
    for clips in (None, clip):
        model, x, y = tokens(sgd(clips), jit_compile=False)
        before = model.get_weights()
        fit(model, x, y, 12)
        pairs = zip(model.get_weights(), before, strict=True)
        moved.append(np.sqrt(sum(np.sum((new - old) ** 2) for new, old in pairs)))
    optimizer = sgd(clip)
    if steps > 1:
        optimizer = ranger.RangerOptimizer(inner=optimizer, accumulation_steps=steps)
    model, x, y = tokens(optimizer, **MODES[mode])
    history = fit(model, x, y, 12 // steps, callbacks=[ranger.callbacks.GradientNorm()]).history
    np.testing.assert_allclose(history["gradient_norm"], moved[0], rtol=1e-4)
    if clip is not None:
        # Keras on TensorFlow clips a batch by a norm that takes a row's occurrences one by one.
        left = moved[1] if steps == 1 else clip
        np.testing.assert_allclose(history["clipped_fraction"], 1 - left / moved[0], rtol=1e-4)


@needs_multi_optimizer
def test_a_multi_optimizer_clips_what_each_optimizer_has():
    def optimizers(*clips):
        bias, kernel = (keras.optimizers.SGD(1.0, global_clipnorm=clip) for clip in clips)
        return keras.optimizers.MultiOptimizer(lambda v: bias if v.name == "bias" else kernel)

    x, y = data(16)
    before = reference.weights()
    model = linear(optimizers(0.3, None))
    history = fit(model, x, y, 16, callbacks=[ranger.callbacks.GradientNorm()]).history
    pairs = zip(model.get_weights(), before, strict=True)
    moved = np.sqrt(sum(np.sum((new - old) ** 2) for new, old in pairs))
    norm = reference.train(x, y, 16, 16, RATE, 1)["gradient_norm"]
    np.testing.assert_allclose(history["gradient_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(history["clipped_fraction"], 1 - moved / norm, rtol=1e-4)


@first
@needs_multi_optimizer
def test_a_multi_optimizer_that_accumulates_is_refused():
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD(gradient_accumulation_steps=2))
    )
    with pytest.raises(ValueError, match="wrap the MultiOptimizer in RangerOptimizer"):
        train(linear(optimizer))


class WithOwnStep(keras.Model):
    """A model with a training step of its own, which logs a number more."""

    def train_step(self, *arguments):
        found = super().train_step(*arguments)
        logs, *state = found if BACKEND == "jax" else (found,)
        logs = {**logs, "own": 1.0}
        return (logs, *state) if BACKEND == "jax" else logs


def with_own_step(cls, optimizer):
    """Return the twin's model with the training step of `cls`."""
    inputs = keras.Input((6,))
    model = cls(inputs, layers.Dense(2)(inputs))
    model.set_weights(reference.weights())
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_step_of_the_models_own(steps):
    optimizer = windows(steps) if steps > 1 else keras.optimizers.SGD(RATE)
    model = with_own_step(WithOwnStep, optimizer)
    history = train(model, batch_size=BATCH // steps)
    assert_logged(history, twin(BATCH // steps), NAMES)
    assert history["own"] == [1, 1, 1]


class WithoutUpdate(keras.Model):
    """A model whose training step leaves the optimizer of compile alone."""

    def train_step(self, *arguments):
        logs = {"loss": keras.ops.ones(())}
        return (logs, arguments[0]) if BACKEND == "jax" else logs


def test_a_training_step_with_another_optimizer_is_warned_of():
    model = with_own_step(WithoutUpdate, keras.optimizers.SGD(RATE))
    with pytest.warns(UserWarning, match="WithoutUpdate.train_step has not called SGD"):
        history = train(model, epochs=1)
    assert np.isnan(history["gradient_norm"]).all()


@pytest.mark.parametrize(
    "make", [lambda: keras.optimizers.Adam(0.1), windows], ids=["plain", "windows"]
)
def test_measuring_does_not_change_the_weights(make):
    x, y = data()
    models = [network(make()) for _ in range(2)]
    for model, callbacks in zip(models, ([], [ranger.callbacks.GradientNorm()]), strict=True):
        fit(model, x, y, PART, 2, callbacks=callbacks)
        fit(model, x, y, PART)
    assert_same_weights(*models)


@pytest.mark.parametrize(
    "make", [lambda: keras.optimizers.SGD(RATE), windows], ids=["plain", "windows"]
)
def test_norms_end_with_their_fit_and_the_next_one_compiles_nothing(make):
    model = linear(make())
    train(model, epochs=1)
    plain, metrics = model.train_function, len(model.metrics)
    assert not set(fit(model, *data(), BATCH).history) & {*NAMES, *CLIPPED}
    assert model.train_function is plain
    used = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: used.append(model.train_function)
    )
    for _ in range(2):
        callbacks = [ranger.callbacks.GradientNorm(), watch]
        assert {*NAMES} <= {*fit(model, *data(), BATCH, callbacks=callbacks).history}
    assert len({id(each) for each in used}) == 1
    assert used[0] is not plain
    assert model.train_function is plain
    assert len(model.metrics) == metrics
    own = {"train_step", "make_train_function", "apply", "stateless_apply"}
    assert not own & {*vars(model), *vars(model.optimizer)}


class Failing(keras.callbacks.Callback):
    """Fails after the first batch."""

    def on_train_batch_end(self, batch, logs=None):
        raise RuntimeError("on purpose")


@first
@pytest.mark.parametrize("size", [None, 5])
def test_a_fit_that_fails_leaves_no_norms_behind(size):
    model = linear(keras.optimizers.SGD(RATE))
    if size:
        ranger.microbatch(model, size)
    for next_fit in ("plain", "norms", "whole", "microbatch"):
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(model, *data(), BATCH, callbacks=[ranger.callbacks.GradientNorm(), Failing()])
        if next_fit in ("whole", "microbatch"):
            ranger.microbatch(model, 4 if next_fit == "microbatch" else None)
        callbacks = [ranger.callbacks.GradientNorm()] if next_fit == "norms" else []
        history = fit(model, *data(), BATCH, callbacks=callbacks).history
        assert ("gradient_norm" in history) == (next_fit == "norms")


@first
def test_it_measures_what_the_model_is_compiled_with_next():
    model = linear(keras.optimizers.SGD(RATE))
    train(model, epochs=1)
    for optimizer, size in ((windows(), PART), (keras.optimizers.SGD(RATE), BATCH)):
        model.compile(optimizer, "mse", jit_compile=False)
        model.set_weights(reference.weights())
        assert_logged(train(model, batch_size=size), twin(size), NAMES)


@first
@pytest.mark.parametrize("turn", [1, -1])
def test_with_noise_scale(turn):
    both = [ranger.callbacks.GradientNorm(), ranger.callbacks.NoiseScale(verbose=False)]
    history = fit(linear(windows()), *data(), PART, 3, callbacks=both[::turn]).history
    assert_logged(history, twin(PART), NAMES)
    assert np.isfinite(history["advised_batch"]).all()


@first
def test_evaluate_takes_the_callback_and_measures_nothing():
    model = linear(keras.optimizers.SGD(RATE))
    model.evaluate(*data(), verbose=0, callbacks=[ranger.callbacks.GradientNorm()])
    assert not {*NAMES} & {*fit(model, *data(), BATCH).history}


@first
def test_a_checkpoint_of_windows_holds_no_norms(tmp_path):
    model = linear(windows())
    train(model, epochs=1, batch_size=PART)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    plain = linear(windows())
    fit(plain, *data(), PART)
    history = train(plain, epochs=1, batch_size=PART)
    assert_logged(train(loaded, epochs=1, batch_size=PART), history, NAMES)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras on PyTorch runs one batch per call")
@pytest.mark.parametrize("make", [lambda: keras.optimizers.SGD(RATE), windows])
def test_several_batches_of_one_call(make):
    optimizer = make()
    size = PART if isinstance(optimizer, ranger.RangerOptimizer) else BATCH
    model = linear(optimizer, steps_per_execution=2)
    assert_logged(train(model, batch_size=size), twin(size), NAMES)
