"""GradientNorm: what it logs is the float64 twin's, or what SGD of rate 1 moves the weights by."""

import keras
import numpy as np
import pytest
from keras import layers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import tensorflow_ranger as ranger
from tensorflow_ranger.training.microbatch import install
from tests.marks import first, first_but, thorough_but
from tests.models import assert_same_weights, data, fit, network
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


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_history_holds_the_twins_norms(clip):
    model = ranger.microbatch(linear(keras.optimizers.SGD(RATE, **clip)), 5)
    history = train(model, epochs=4)
    expected = reference.train(*data(), BATCH, 5, RATE, epochs=4, **clip)
    assert_logged(history, expected, [*NAMES, *(CLIPPED if clip else [])])
    assert [name for name in CLIPPED if name in history] == (CLIPPED if clip else [])
    if clip:
        assert 0 < np.mean(expected["clipped_updates"]) < 1
    for weight, value in zip(model.get_weights(), expected["weights"], strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    thorough_but(
        [{"run_eagerly": True}],
        [{"run_eagerly": True}, *([{"jit_compile": True}] if BACKEND != "torch" else [])],
    ),
)
@pytest.mark.parametrize("loop", [None] if BACKEND == "torch" else ["host", "device"])
def test_compiled_or_not(loop, settings):
    clip = {"global_clipnorm": 2.0}
    model = install(linear(keras.optimizers.SGD(RATE, **clip), **settings), 5, loop=loop)
    expected = reference.train(*data(), BATCH, 5, RATE, epochs=1, **clip)
    assert_logged(train(model, epochs=1), expected)


def test_one_micro_batch_has_the_norm_of_its_update():
    history = train(ranger.microbatch(linear("sgd"), 100))
    np.testing.assert_allclose(
        history["gradient_norm"], history["microbatch_gradient_norm"], rtol=1e-6
    )


def tokens():
    """Return a model whose table has rows that occur twice, and tokens for it."""
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(50, 4, mask_zero=True)(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    x = np.random.default_rng(0).integers(1, 6, (12, 5))
    x[:, 3:] *= np.random.default_rng(1).integers(0, 2, (12, 1))
    return model, x, data(12)[1]


def dense():
    """Return a network, and a batch."""
    return network("sgd"), *data(12)


def spread(y, y_pred):
    return keras.ops.var(y_pred - y)


@pytest.mark.parametrize(
    ("make", "loss", "options"),
    thorough_but(
        [(tokens, "mse", {})],
        [
            (tokens, "mse", {}),
            (tokens, "mse", {"padding": 0}),
            (dense, spread, {}),
            (dense, "mse", {"rematerialize": 2}),
        ],
    ),
)
@pytest.mark.parametrize("clip", thorough_but([None], [None, 0.05]))
def test_the_norm_is_what_sgd_of_rate_1_moves_the_weights_by(make, loss, options, clip):
    moved = []
    for clips in (None, clip):
        keras.utils.set_random_seed(1)
        model, x, y = make()
        model.compile(keras.optimizers.SGD(1.0, global_clipnorm=clips), loss, jit_compile=False)
        before = model.get_weights()
        fit(model, x, y, 12)
        pairs = zip(model.get_weights(), before, strict=True)
        moved.append(np.sqrt(sum(np.sum((new - old) ** 2) for new, old in pairs)))
        model.set_weights(before)
    callbacks = [ranger.callbacks.GradientNorm()]
    history = fit(ranger.microbatch(model, 5, **options), x, y, 12, callbacks=callbacks).history
    np.testing.assert_allclose(history["gradient_norm"], moved[0], rtol=1e-4)
    if clip is not None:
        np.testing.assert_allclose(history["clipped_fraction"], 1 - moved[1] / moved[0], rtol=1e-4)


def test_the_loss_scale_is_no_part_of_a_norm_and_a_bad_batch_is_not_counted():
    x, y = data()
    y[BATCH + 3] = np.inf  # the second of three batches
    inner = keras.optimizers.SGD(RATE, global_clipnorm=2.0)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**15)
    model = ranger.microbatch(linear(scaled), 5)
    callbacks = [ranger.callbacks.GradientNorm()]
    history = fit(model, x, y, BATCH, 2, callbacks=callbacks).history
    rows = np.r_[:BATCH, 2 * BATCH : 3 * BATCH]
    assert_logged(
        history, reference.train(x[rows], y[rows], BATCH, 5, RATE, 2, global_clipnorm=2.0)
    )


@first
def test_an_epoch_without_a_finite_gradient_has_no_norm():
    x, y = data()
    callbacks = [ranger.callbacks.GradientNorm()]
    history = fit(ranger.microbatch(linear("sgd"), 5), x, y * np.nan, BATCH, callbacks=callbacks)
    assert np.isnan(history.history["gradient_norm"]).all()


@pytest.mark.parametrize(
    "policy", first_but(["mixed_float16"], ["mixed_float16", "mixed_bfloat16"])
)
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = ranger.microbatch(linear("sgd"), 5)
    finally:
        keras.config.set_dtype_policy("float32")
    expected = reference.train(*data(), BATCH, 5, 0.01, epochs=1)
    assert_logged(train(model, epochs=1), expected, NAMES, tolerance=2e-2)


@first
def test_the_logs_of_a_batch_are_means_over_the_epoch_so_far(capsys):
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(dict(logs))
    )
    model = ranger.microbatch(linear(keras.optimizers.SGD(RATE)), 5)
    callbacks = [watch, ranger.callbacks.GradientNorm()]  # in any order
    fit(model, *data(), BATCH, 2, callbacks=callbacks, verbose=1)
    norms = reference.train(*data(), BATCH, 5, RATE, epochs=2)["norms"]
    means = [np.cumsum(each) / np.arange(1, 4) for each in norms]
    logged = [float(logs["gradient_norm"]) for logs in seen]
    np.testing.assert_allclose(logged, np.concatenate(means), rtol=1e-4)
    assert f"gradient_norm: {means[-1][-1]:.3f}" in capsys.readouterr().out


@first
def test_tensorboard_draws_the_norms(tmp_path):
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    model = ranger.microbatch(linear("sgd"), 5)
    callbacks = [board, ranger.callbacks.GradientNorm()]
    fit(model, *data(), BATCH, 2, callbacks=callbacks)
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    drawn = [make_ndarray(event.tensor_proto) for event in events.Tensors("epoch_gradient_norm")]
    np.testing.assert_allclose(drawn, model.history.history["gradient_norm"], rtol=1e-6)


@first
def test_validation_has_no_norms_and_leaves_them_alone():
    model = ranger.microbatch(linear(keras.optimizers.SGD(RATE)), 5)
    history = train(model, validation_data=data(), validation_freq=1)
    assert_logged(history, reference.train(*data(), BATCH, 5, RATE, epochs=3), NAMES)
    assert not [name for name in history if name.startswith("val_") and "norm" in name]


@first
@pytest.mark.parametrize("momentum", thorough_but([0.9], [0.0, 0.9]))
def test_measuring_does_not_change_the_weights(momentum):
    x, y = data()
    models = [ranger.microbatch(network(keras.optimizers.SGD(0.1, momentum)), 5) for _ in range(2)]
    for model, callbacks in zip(models, ([], [ranger.callbacks.GradientNorm()]), strict=True):
        fit(model, x, y, BATCH, 2, callbacks=callbacks)
        fit(model, x, y, BATCH)
    assert_same_weights(*models)


def test_norms_end_with_their_fit_and_the_next_one_compiles_nothing():
    model = ranger.microbatch(linear(keras.optimizers.SGD(RATE)), 5)
    train(model, epochs=1)
    step, metrics = model.train_function, len(model.metrics)
    assert not set(fit(model, *data(), BATCH).history) & {*NAMES, *CLIPPED}
    history = train(model, epochs=1)
    expected = reference.train(*data(), BATCH, 5, RATE, epochs=3)
    assert_logged(history, {name: expected[name][2:] for name in NAMES}, NAMES)
    assert model.train_function is step
    assert len(model.metrics) == metrics


@first
def test_with_noise_scale():
    model = ranger.microbatch(linear(keras.optimizers.SGD(RATE)), 5)
    both = [ranger.callbacks.NoiseScale(verbose=False), ranger.callbacks.GradientNorm()]
    history = fit(model, *data(), BATCH, 2, callbacks=both).history
    alone = ranger.microbatch(linear(keras.optimizers.SGD(RATE)), 5)
    noise = fit(alone, *data(), BATCH, 2, callbacks=both[:1]).history["noise_scale"]
    np.testing.assert_allclose(history["noise_scale"], noise, rtol=1e-3)
    assert_logged(history, reference.train(*data(), BATCH, 5, RATE, epochs=2), NAMES)


def test_a_window_of_one_batch_is_its_update():
    optimizer = ranger.RangerOptimizer(
        inner=keras.optimizers.SGD(RATE, clipnorm=1.8), accumulation_steps=1
    )
    history = train(ranger.microbatch(linear(optimizer), 5), epochs=1)
    assert_logged(history, reference.train(*data(), BATCH, 5, RATE, epochs=1, clipnorm=1.8))


@first
def test_a_model_with_a_gradient_per_task_is_refused():
    inputs = keras.Input((6,))
    heads = {name: layers.Dense(2, name=name)(inputs) for name in "ab"}
    model = keras.Model(inputs, heads)
    model.compile("sgd", {"a": "mse", "b": "mse"})
    ranger.microbatch(ranger.multitask(model, "sum"), 5)
    x, y = data()
    callbacks = [ranger.callbacks.GradientNorm()]
    with pytest.raises(ValueError, match="one per task"):
        fit(model, x, {"a": y, "b": y}, BATCH, callbacks=callbacks)
