"""What `fit` offers works in micro-batches, and gives what whole batches give."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tensorflow_ranger import microbatch
from tests.models import assert_same_weights, data, fit, network

BACKEND = keras.config.backend()
BATCH, SIZE = 20, 8  # 48 samples: batches of 20, 20 and 8, in micro-batches of 8 and 4


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def assert_same_history(actual, expected, tolerance=1e-5):
    assert actual.history.keys() == expected.history.keys()
    for key, values in expected.history.items():
        np.testing.assert_allclose(actual.history[key], values, rtol=tolerance, err_msg=key)


def pipeline(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // BATCH)

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[rows], self.y[rows]


def loader(x, y):
    import torch

    tensors = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(tensors, batch_size=BATCH)


def generator(x, y):
    yield from (Sequence(x, y)[i] for i in range(3))


SOURCES = {
    "tf.data": pipeline,
    "PyDataset": Sequence,
    "DataLoader": loader,
    "generator": generator,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_sources_of_batches(source):
    x, y = data()
    model, expected = (network(sgd(), metrics=["mae"]) for _ in range(2))
    microbatch(model, SIZE)
    settings = {"shuffle": False, "verbose": 0, "steps_per_epoch": 3}
    history = model.fit(source(x, y), **settings)
    plain = expected.fit(source(x, y), **settings)
    assert int(model.optimizer.iterations) == 3
    assert_same_weights(model, expected)
    assert_same_history(history, plain)


COMPILE = {
    "jit_compile": {"jit_compile": True},
    "no jit_compile": {"jit_compile": False},
    "run_eagerly": {"run_eagerly": True, "jit_compile": False},
    "steps_per_execution": {"steps_per_execution": 2},
}
if BACKEND == "torch":
    del COMPILE["steps_per_execution"]  # Keras refuses it on PyTorch


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch.compile's own modules
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of it, and Keras 3.12
@pytest.mark.parametrize("settings", COMPILE.values(), ids=COMPILE)
def test_compile_settings(settings):
    x, y = data()
    model = microbatch(network(sgd(), metrics=["mae"], **settings), SIZE)
    expected = network(sgd(), metrics=["mae"])
    history = fit(model, x, y, batch_size=BATCH, epochs=2)
    assert_same_history(history, fit(expected, x, y, batch_size=BATCH, epochs=2))
    assert_same_weights(model, expected)


def test_batches_of_several_shapes_are_traced_once_each():
    traces = []

    class Dense(layers.Dense):
        def call(self, inputs, training=None):
            traces.append(inputs.shape[0])
            return super().call(inputs)

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), Dense(2)])
    model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
    microbatch(model, SIZE)
    x, y = data()
    fit(model, x, y, batch_size=BATCH)
    seen = len(traces)
    fit(model, x, y, batch_size=BATCH, epochs=2)
    assert len(traces) == seen or BACKEND == "torch"


def test_validation_is_keras_own():
    x, y = data()
    model, expected = (network(sgd(), metrics=["mae"]) for _ in range(2))
    microbatch(model, SIZE)
    settings = {"batch_size": BATCH, "epochs": 2, "validation_split": 0.25}
    assert_same_history(fit(model, x, y, **settings), fit(expected, x, y, **settings))
    np.testing.assert_allclose(
        model.evaluate(x, y, verbose=0), expected.evaluate(x, y, verbose=0), rtol=1e-5
    )


def test_callbacks_see_every_batch_once():
    def trained(wrap):
        model, seen = wrap(network(sgd())), []
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append((batch, logs["loss"]))
        )
        x, y = data()
        rate = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
        history = fit(model, x, y, batch_size=BATCH, epochs=2, callbacks=[callback, rate])
        return model, seen, history

    model, seen, history = trained(lambda model: microbatch(model, SIZE))
    expected, plainly_seen, plain = trained(lambda model: model)
    np.testing.assert_allclose(seen, plainly_seen, rtol=1e-5)
    assert_same_history(history, plain)
    assert_same_weights(model, expected)


def test_class_and_sample_weights():
    rng = np.random.default_rng(0)
    x, y = data()[0], rng.integers(0, 2, 48)
    settings: list[dict[str, Any]] = [
        {"class_weight": {0: 0.25, 1: 3.0}},
        {"sample_weight": rng.uniform(0, 2, 48) * (np.arange(48) > 5)},
    ]
    for weights in settings:
        model, expected = (
            network(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            for _ in range(2)
        )
        microbatch(model, SIZE)
        history = fit(model, x, y, batch_size=BATCH, **weights)
        assert_same_history(history, fit(expected, x, y, batch_size=BATCH, **weights))
        assert_same_weights(model, expected)


def test_train_on_batch():
    x, y = data()
    model, expected = network(sgd()), network(sgd())
    microbatch(model, SIZE)
    for start in (0, 20):
        rows = slice(start, start + BATCH)
        logs, plain = (m.train_on_batch(x[rows], y[rows]) for m in (model, expected))
        np.testing.assert_allclose(logs, plain, rtol=1e-5)
    assert_same_weights(model, expected)


def functional(optimizer, **settings):
    """Return a model of dicts of inputs and outputs, with a loss that a layer adds."""

    class Penalty(layers.Layer):
        def call(self, inputs):
            self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
            return inputs

    keras.utils.set_random_seed(1)
    inputs = {"left": keras.Input((3,), name="left"), "right": [keras.Input((3,))]}
    merged = layers.Concatenate()([inputs["left"], *inputs["right"]])
    hidden = Penalty()(layers.Dense(4, activation="tanh", kernel_regularizer="l2")(merged))
    outputs = {name: layers.Dense(2, name=name)(hidden) for name in "ab"}
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer, {"a": "mse", "b": "mae"}, loss_weights={"a": 2.0, "b": 0.5}, **settings
    )
    return model


def test_nested_inputs_and_outputs_with_added_losses():
    x, y = data(40)  # two whole batches: see the last line of `tests/equivalence`'s `ignored`
    x = {"left": x[:, :3], "right": [x[:, 3:]]}
    y = {"a": y, "b": -y}
    metrics = {"a": ["mae"], "b": ["mse"]}
    model, expected = functional(sgd(), metrics=metrics), functional(sgd(), metrics=metrics)
    microbatch(model, SIZE)
    history = fit(model, x, y, batch_size=BATCH, epochs=2)
    assert_same_history(history, fit(expected, x, y, batch_size=BATCH, epochs=2))
    assert_same_weights(model, expected)


def test_without_a_reduction_keras_takes_the_sum_of_the_loss():
    x, y = data()
    model, plain, expected = (
        network(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError(reduction=reduction))
        for reduction in (None, None, "sum")
    )
    history = fit(microbatch(model, SIZE), x, y, batch_size=BATCH)
    fit(expected, x, y, batch_size=BATCH)
    assert_same_weights(model, expected)
    if BACKEND == "tensorflow":  # elsewhere plain `fit` needs a reduction
        assert_same_history(history, fit(plain, x, y, batch_size=BATCH))


class Own(keras.Model):
    """A network whose loss and metrics are computed by itself."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)
        self.largest = keras.metrics.Mean(name="largest")

    def call(self, inputs):
        return self.dense(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(keras.ops.subtract(y, y_pred)))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        self.largest.update_state(keras.ops.max(keras.ops.abs(y_pred), axis=-1))
        return logs | {"largest": self.largest.result(), "loss": 2 * logs["loss"]}


def test_a_loss_and_metrics_of_ones_own():
    def make():
        keras.utils.set_random_seed(1)
        model = Own()
        model.compile(sgd(), jit_compile=BACKEND == "jax")
        return model

    x, y = data()
    model, expected = microbatch(make(), SIZE), make()
    history = fit(model, x, y, batch_size=BATCH, epochs=2)
    assert_same_history(history, fit(expected, x, y, batch_size=BATCH, epochs=2))
    assert_same_weights(model, expected)


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "mixed_bfloat16"])
def test_narrow_policies(policy):
    x, y = data()
    keras.config.set_dtype_policy(policy)
    try:
        model = microbatch(network(sgd()), SIZE)
        wrapped = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert wrapped is (policy == "mixed_float16")
        initial = model.get_weights()
        history = fit(model, x, y, batch_size=BATCH, epochs=2).history
    finally:
        keras.config.set_dtype_policy("float32")
    expected = network(sgd())
    expected.set_weights(initial)  # a narrow initializer draws other numbers
    plain = fit(expected, x, y, batch_size=BATCH, epochs=2).history
    np.testing.assert_allclose(history["loss"], plain["loss"], rtol=0.02)
    for actual, reference in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(actual.astype("float32"), reference, atol=0.02)


def test_the_outer_loss_scale_skips_what_overflows():
    outer = keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=2.0**127)
    model = microbatch(network(outer), SIZE)
    before = model.get_weights()
    x, y = data()
    model.train_on_batch(1e3 * x[:BATCH], 1e3 * y[:BATCH])
    for actual, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert float(keras.ops.convert_to_numpy(outer.dynamic_scale.value)) == 2.0**126


def test_a_frozen_model_is_measured_and_left_alone():
    model = network(sgd(), metrics=["mae"])
    model.trainable = False
    model.compile(sgd(), "mse", metrics=["mae"], jit_compile=BACKEND == "jax")
    microbatch(model, SIZE)
    before = model.get_weights()
    x, y = data()
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        history = fit(model, x, y, batch_size=BATCH).history
    for actual, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    # The mean over batches of the loss is the loss of all samples.
    np.testing.assert_allclose(
        [history["loss"][0], history["mae"][0]], model.evaluate(x, y, verbose=0), rtol=1e-5
    )


def test_a_saved_model_is_plain_and_trains_on(tmp_path):
    x, y = data()
    model, expected = network(sgd()), network(sgd())
    fit(microbatch(model, SIZE), x, y, batch_size=BATCH)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not hasattr(loaded, "microbatch_plan")
    fit(microbatch(loaded, SIZE), x, y, batch_size=BATCH)
    fit(expected, x, y, batch_size=BATCH, epochs=2)
    assert_same_weights(loaded, expected)


def test_compiling_again_keeps_the_micro_batches():
    x, y = data()
    model, expected = network(sgd()), network(sgd())
    microbatch(model, SIZE)
    for each in (model, expected):
        each.compile(keras.optimizers.Adam(0.05), "mae", jit_compile=BACKEND == "jax")
        fit(each, x, y, batch_size=BATCH)
    assert model.microbatch_plan.chosen == SIZE
    assert_same_weights(model, expected)


def test_an_activity_regularizer_counts_every_call_of_a_layer():
    # Of a layer that is called twice, Keras' own step on JAX counts the last call alone.
    one = layers.Activation("linear", activity_regularizer=keras.regularizers.L2(1.0))
    one(keras.ops.ones((2, 1)))
    # In Keras 3.12 it is the sum over the samples.
    over_samples = keras.ops.mean if float(one.losses[0]) == 1.0 else keras.ops.sum

    class Penalty(layers.Layer):
        def call(self, inputs):
            squares = keras.ops.sum(keras.ops.square(inputs), axis=-1)
            self.add_loss(0.01 * over_samples(squares))
            return inputs

    def shared(regularizer, penalty):
        keras.utils.set_random_seed(1)
        dense = layers.Dense(6, activity_regularizer=regularizer)
        inputs = keras.Input((6,))
        hidden = penalty(dense(inputs))
        model = keras.Model(inputs, layers.Dense(2)(penalty(dense(hidden))))
        model.compile(sgd(), "mse", jit_compile=BACKEND == "jax")
        return model

    x, y = data(BATCH)
    model = microbatch(shared(keras.regularizers.L2(0.01), lambda outputs: outputs), SIZE)
    expected = shared(None, lambda outputs: Penalty()(outputs))
    fit(model, x, y, batch_size=BATCH, epochs=3)
    fit(expected, x, y, batch_size=BATCH, epochs=3)
    assert_same_weights(model, expected)
