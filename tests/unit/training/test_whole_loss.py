"""microbatch with a loss of the whole batch, together with everything else that fit takes."""

import logging

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tensorflow_ranger.training.microbatch import install
from tests.marks import first, first_but
from tests.models import assert_same_weights, assert_trains_as_plain, data, fit, temporaries
from tests.references.batch_losses import CompiledLoss, OwnLoss, concordance, info_nce

BACKEND = keras.config.backend()
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-10


def spread(y_true, y_pred):
    """A function of the batch: the standard deviation of the error."""
    return ops.std(y_true - y_pred)


def softmax_over_batch(y_true, y_pred):
    """One number per sample, in which all samples meet."""
    return -ops.log_softmax(ops.sum(y_pred * y_true, axis=-1))


def squared(y_true, y_pred):
    """One number per sample, which depends on that sample alone."""
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


def network(
    loss: object = spread, *middle, cls=keras.Model, optimizer: object = "adam", **settings
):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = layers.Dense(5, activation="tanh", kernel_regularizer="l2")(inputs)
    for layer in middle:
        x = layer(x)
    model = cls(inputs, layers.Dense(2)(x))
    jit_compile = BACKEND == "jax" and not settings.get("run_eagerly")
    model.compile(optimizer, loss, **{"jit_compile": jit_compile, **settings})
    return model


def is_whole(model):
    return model.microbatch_plan.loss is not None


@pytest.mark.parametrize("loop", ["device", "host"])
def test_every_loop(float64, loop):
    x, y = data(36)
    plain, parts = network(), install(network(), 5, loop=loop)
    for model in (plain, parts):
        fit(model, x, y, 12)
    assert_same_weights(parts, plain, TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"run_eagerly": True}, marks=first),
        {"jit_compile": True},
        {"steps_per_execution": 2},
        {"metrics": ["mae"], "weighted_metrics": ["mse"]},
        {"optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9)},
        pytest.param(
            {"optimizer": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1)}, marks=first
        ),
        {"optimizer": lambda: ranger.RangerOptimizer(0.05, accumulation_steps=2)},
        pytest.param(
            {"optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))},
            marks=first,
        ),
    ],
    ids=["eager", "jit", "steps", "metrics", "fold", "clipped", "ranger", "loss scale"],
)
def test_settings_of_compile(float64, settings):
    if BACKEND == "torch" and ("jit_compile" in settings or "steps_per_execution" in settings):
        pytest.skip("Keras does not compile these on PyTorch.")

    def make():
        made = {k: v() if k == "optimizer" else v for k, v in settings.items()}
        return network(**made)

    assert_trains_as_plain(make, *data(32), sizes=(5,), tolerance=TOLERANCE)


@first
def test_sample_weights(float64):
    x, y = data(32)
    weights = np.random.default_rng(1).uniform(0.5, 2, 32)

    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            assert y is not None
            error = ops.mean(ops.square(y - y_pred), axis=-1) * ops.reshape(sample_weight, (-1,))
            return ops.log(ops.sum(error)) + sum(self.losses)

    make = lambda: network(None, cls=Own)  # noqa: E731
    assert_trains_as_plain(make, x, y, sizes=(5,), tolerance=TOLERANCE, sample_weight=weights)


def test_a_layer_s_loss_counts_once(float64):
    class Adds(layers.Layer):
        def call(self, x):
            # Keras' mean rounds through float32 on JAX.
            self.add_loss(ops.sum(ops.square(x)) / ops.cast(10 * ops.shape(x)[0], x.dtype))
            return x

    def make():
        keras.utils.set_random_seed(2)
        return network(spread, Adds(), layers.Dense(4, activity_regularizer="l2"))

    assert_trains_as_plain(make, *data(32), sizes=(5,), tolerance=TOLERANCE)


@first
def test_two_outputs_one_of_them_masked(float64):
    def make():
        keras.utils.set_random_seed(1)
        words = keras.Input((5,), dtype="int32")
        vectors = layers.Embedding(9, 4, mask_zero=True)(words)
        tags = layers.Dense(3, name="tags")(layers.Dense(4, activation="tanh")(vectors))
        score = layers.Dense(1, name="score")(layers.GlobalAveragePooling1D()(vectors))
        model = keras.Model(words, {"tags": tags, "score": score})
        model.compile(
            keras.optimizers.SGD(0.1),
            {
                "tags": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                "score": spread,
            },
            loss_weights={"tags": 0.7, "score": 1.3},
            metrics={"score": "mae"},
            jit_compile=BACKEND == "jax",
        )
        return model

    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, (32, 5))
    x[np.arange(5) > np.arange(32)[:, None] % 5] = 0
    y = {"tags": rng.integers(0, 3, (32, 5)), "score": rng.normal(size=(32, 1))}
    assert_trains_as_plain(make, x, y, sizes=(5,), tolerance=TOLERANCE)


def test_state_that_the_loss_assigns(float64):
    class Centered(keras.Model):
        def build(self, shape):
            super().build(shape)
            self.center = self.add_weight(shape=(2,), initializer="zeros", trainable=False)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            mean = ops.mean(y_pred, axis=0)
            self.center.assign(0.9 * self.center + 0.1 * mean)
            return ops.mean(ops.square(y_pred - self.center)) + spread(y, y_pred)

    def make():
        model = network(None, cls=Centered)
        if not hasattr(model, "center"):
            model.build((None, 6))
        return model

    assert_trains_as_plain(make, *data(32), sizes=(5,), tolerance=TOLERANCE)


class Counting(keras.Model):
    """A network whose loss updates a metric of its own, as Keras' guides show."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.quadrupled = keras.metrics.Mean(name="quadrupled")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self.quadrupled.update_state(4 * loss)
        return loss


def test_a_metric_that_the_loss_updates_after_evaluate(float64):
    model = ranger.microbatch(network(cls=Counting), 2)
    x, y = data(12)
    model.evaluate(x, y, verbose=0)
    history = fit(model, x, y, 6).history
    np.testing.assert_allclose(history["quadrupled"], 4 * np.array(history["loss"]), rtol=1e-6)


@pytest.mark.parametrize("loss", ["shares", None])
def test_a_metric_that_the_loss_updates_in_a_short_batch(float64, loss):
    whole, parts = network("mse", cls=Counting), network("mse", cls=Counting)
    ranger.microbatch(parts, 4, loss=loss)
    expected, actual = (fit(model, *data(14), 12).history for model in (whole, parts))
    np.testing.assert_allclose(actual["quadrupled"], expected["quadrupled"], rtol=1e-6)


def test_dropout_is_the_same_in_both_passes(float64):
    def make():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        x = layers.Dropout(0.4, seed=3)(layers.Dense(8, activation="tanh")(inputs))
        model = OwnLoss(inputs, layers.Dense(4)(layers.GaussianNoise(0.1, seed=4)(x)))
        model.take(info_nce).compile("adam", jit_compile=BACKEND == "jax")
        return model

    x, y = data(36)
    x, y = x.astype("float64"), y.astype("float64")
    ours, other = ranger.microbatch(make(), 5), make()
    if BACKEND == "torch":  # whose own stream Keras' layers do not draw within micro-batches
        ranger.microbatch(other, 12)
    fit(ours, x, y, 12)
    fit(other, x, y, 12)
    assert_same_weights(ours, other, 1e-6 if BACKEND == "torch" else 1e-9)
    for seed, expected in zip(
        ours.non_trainable_variables, other.non_trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(seed, expected)


def test_moving_statistics_move_once_a_batch():
    momentum = 0.5
    model = network(spread, layers.BatchNormalization(momentum=momentum))
    x, y = data(12)
    hidden = keras.Model(model.inputs[0], model.layers[1].output)
    outputs = np.asarray(ops.convert_to_numpy(hidden(ops.convert_to_tensor(x))), "float64")
    fit(ranger.microbatch(model, 4), x, y, 12)
    np.testing.assert_allclose(
        model.layers[2].moving_mean, (1 - momentum) * outputs.mean(0), rtol=1e-5, atol=1e-6
    )


def test_a_count_of_layers_counts_each_sample_once():
    class Counts(layers.Layer):
        def build(self, shape):
            self.samples = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x, training=False):
            if training:
                self.samples.assign(self.samples + ops.cast(ops.shape(x)[0], "float32"))
            return x

    model = ranger.microbatch(network(spread, Counts(name="counts")), 5)
    fit(model, *data(36), 12)
    assert float(ops.convert_to_numpy(model.get_layer("counts").samples)) == 36


@first
def test_tasks_are_cut_apart(float64):
    def make():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        x = layers.Dense(5, activation="tanh")(inputs)
        model = keras.Model(inputs, {n: layers.Dense(2, name=n)(x) for n in ("a", "b")})
        model.compile("sgd", {"a": spread, "b": "mse"}, jit_compile=BACKEND == "jax")
        return ranger.multitask(model, "pcgrad")

    x, y = data(36)
    y = {"a": y, "b": -y}
    whole, parts = make(), ranger.microbatch(make(), 5)
    for model in (whole, parts):
        fit(model, x, y, 12)
    assert_same_weights(parts, whole, TOLERANCE)


def test_samples_that_meet_in_a_loss_per_sample_are_found(float64):
    model = ranger.microbatch(network(softmax_over_batch), 5)
    assert_trains_as_plain(
        lambda: network(softmax_over_batch), *data(36), sizes=(5,), tolerance=TOLERANCE
    )
    fit(model, *data(36), 12)
    assert "samples meet in the loss 'softmax_over_batch'" in model.microbatch_plan.loss


def balanced(y_true, y_pred):
    """One number per sample, weighted by how rare its class is in the batch."""
    positive = ops.mean(y_true[:, 0])
    weights = ops.where(y_true > 0.5, 1 / (positive + 0.01), 1 / (1.01 - positive))
    return ops.mean(weights * ops.square(y_true - y_pred), axis=-1)


def mined(y_true, y_pred):
    """One number per sample, weighted by how many the model finds."""
    found = ops.mean(ops.cast(y_pred[:, 0] > 2.0, y_pred.dtype))
    return (1 + found) * squared(y_true, y_pred)


@pytest.mark.parametrize("loss", [balanced, mined])
def test_samples_that_meet_only_in_rare_samples_are_found(float64, loss):
    x, _ = data(72)
    y = np.zeros((72, 2))
    y[[30, 33, 60]] = 1  # no sample among the first ones, which are compared
    if loss is mined:
        x[30:33] *= 100
    assert_trains_as_plain(
        lambda: network(loss, optimizer=keras.optimizers.SGD(0.1)),
        x,
        y,
        sizes=(5,),
        tolerance=TOLERANCE,
        batch_size=36,
    )


def test_targets_that_the_loss_refuses_are_not_invented():
    def positive(y_true, y_pred):
        if keras.config.backend() == "torch":
            assert bool((y_true > 0).all())
        elif keras.config.backend() == "tensorflow":
            import tensorflow as tf

            with tf.control_dependencies([tf.debugging.assert_positive(y_true)]):
                y_true = tf.identity(y_true)
        return squared(y_true, y_pred)

    x, y = data(24)
    model = ranger.microbatch(network(positive), 5)
    fit(model, x, np.abs(y) + 0.1, 12)
    assert not is_whole(model)


@pytest.mark.parametrize("loss", [squared, "mse", keras.losses.Huber()])
def test_a_loss_per_sample_keeps_the_cheap_way(loss):
    model = ranger.microbatch(network(loss), 5)
    fit(model, *data(24), 12)
    assert not is_whole(model)


def test_it_is_told_once_with_reason_and_price(caplog):
    model = ranger.microbatch(network(), 5)
    with caplog.at_level(logging.WARNING, "tensorflow_ranger"):
        fit(model, *data(24), 12)
    (message,) = [r.message for r in caplog.records if "outputs of the whole batch" in r.message]
    assert "the loss 'spread' returns one number for a batch" in message
    assert "one more forward pass" in message
    assert model.microbatch_plan.loss in str(model.microbatch_plan)


def test_a_batch_that_is_one_micro_batch_pays_nothing(caplog):
    model = ranger.microbatch(network(), 12)
    fit(model, *data(24), 12)
    assert not is_whole(model)
    assert not [r for r in caplog.records if "outputs of the whole batch" in r.message]


def test_shares_are_taken_where_they_are_asked_for():
    model = ranger.microbatch(network(), 5, loss="shares")
    with pytest.warns(UserWarning, match="'spread' is not what the whole batch gives"):
        fit(model, *data(24), 12)
    assert not is_whole(model)


def test_any_loss_can_be_made_whole(float64):
    x, y = data(24)
    parts, plain = ranger.microbatch(network("mse"), 5, loss="whole"), network("mse")
    for model in (parts, plain):
        fit(model, x, y, 12)
    assert is_whole(parts)
    assert_same_weights(parts, plain, TOLERANCE)


def test_another_loss_is_refused():
    with pytest.raises(ValueError, match="loss must be None, 'shares' or 'whole': got 'all'"):
        ranger.microbatch(network(), 5, loss="all")


def test_its_noise_is_not_measured():
    model = ranger.microbatch(network(), 5)
    with pytest.raises(ValueError, match="NoiseScale compares the gradients of micro-batches"):
        fit(model, *data(24), 12, callbacks=[ranger.callbacks.NoiseScale()])


@first
def test_auto_finds_a_size(float64):
    keras.utils.set_random_seed(1)
    plain, parts = network(), ranger.microbatch(network(), "auto")
    for model in (plain, parts):
        fit(model, *data(96), 24, epochs=4)
    assert_same_weights(parts, plain, TOLERANCE)


class Failing:
    """Raises that memory ran out at one of the calls of a function, or lets them pass.

    Args:
        function: The function.
        at: The number of the call, from 0 on.
    """

    def __init__(self, function, at):
        self.function, self.left = function, at

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == -1:
            raise MemoryError("out of memory while trying to allocate 1 byte")
        return self.function(*args, **kwargs)


# The loss is computed once a batch.
FAILURES = [("forward", 1), ("differentiate", 0), ("add", 1), ("forward", 0), ("add", 0)]


@pytest.mark.parametrize(("phase", "at"), first_but(FAILURES[:3], FAILURES))
def test_a_batch_for_which_memory_ran_out_is_run_again(float64, monkeypatch, phase, at):
    x, y = data(24)
    settings = {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9), "run_eagerly": True}
    plain = network(**settings)
    settings["optimizer"] = keras.optimizers.SGD(0.1, momentum=0.9)
    parts = ranger.microbatch(network(**settings), 4)
    fit(plain, x, y, 12, epochs=2)
    fit(parts, x, y, 12)
    ((phases, step),) = parts.make_train_function.__self__.maker.made.values()
    holder, name = (phases, phase) if BACKEND == "torch" else (step, f"_{phase}")
    monkeypatch.setattr(holder, name, Failing(getattr(holder, name), at))
    fit(parts, x, y, 12)
    assert parts.microbatch_plan.chosen == 2
    assert_same_weights(parts, plain, TOLERANCE)


if BACKEND == "jax":

    def test_memory_does_not_grow_with_the_batch_but_for_its_outputs():
        def needed(samples):
            keras.utils.set_random_seed(1)
            inputs = keras.Input((256,))
            x = inputs
            for _ in range(4):
                x = layers.Dense(256, activation="tanh")(x)
            model = keras.Model(inputs, layers.Dense(2)(x))
            loss = CompiledLoss(concordance)
            model.compile("sgd", loss)
            ranger.microbatch(model, 32)
            x = np.zeros((samples, 256), "float32")
            y = np.ones((samples, 2), "float32")
            return temporaries(model, x, y, 32)

        assert needed(16384) - needed(512) < 16384 * 2 * 4 * 12
