"""The end of `fit` with several optimizers, whichever of them the model is compiled with."""

import copy
import pickle

import keras
import numpy as np
import pytest

from tensorflow_ranger import RangerOptimizer
from tests.models import data, fit, network

BACKEND = keras.config.backend()


def variables(*names):
    return [keras.Variable(np.zeros(2), name=name) for name in names]


def optimizer_of(weights, **settings):
    optimizer = RangerOptimizer(1.0, 0.0, accumulation_steps=4, **settings)
    optimizer.build(weights)
    return optimizer


def value(weight):
    return keras.ops.convert_to_numpy(weight.value)


def add(optimizer, *weights, gradient=1.0):
    optimizer.apply([keras.ops.full((2,), gradient) for _ in weights], list(weights))


def test_the_windows_of_all_that_train_the_variables_are_closed():
    first, second, third = weights = variables("first", "second", "third")
    one, two, three = (optimizer_of([weight]) for weight in weights)
    for optimizer, weight in ((one, first), (two, second), (three, third)):
        add(optimizer, weight)
    one.finalize_variable_values([first, second])
    assert [o.pending_micro_batches for o in (one, two, three)] == [0, 0, 1]
    np.testing.assert_array_equal(
        [value(weight) for weight in weights], [[-1, -1], [-1, -1], [0, 0]]
    )


def test_only_windows_are_closed():
    first, second = variables("first", "second")
    one, two = optimizer_of([first]), optimizer_of([second], use_ema=True, ema_momentum=0.5)
    for gradient in (1.0, 3.0):
        for _ in range(4):
            add(two, second, gradient=gradient)
    add(one, first)
    one.finalize_variable_values([first, second])
    np.testing.assert_array_equal(value(second), [-4, -4])  # not its moving average


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_an_optimizer_built_for_more_than_it_trains():
    # PyTorch and JAX build the model's optimizer for all of the model's variables.
    first, second = weights = variables("first", "second")
    one, two = optimizer_of(weights), optimizer_of([second])
    add(one, first)
    add(two, second)
    one.finalize_variable_values(weights)
    np.testing.assert_array_equal([value(weight) for weight in weights], [[-1, -1], [-1, -1]])


def test_a_window_of_shared_variables_is_named_and_stays():
    (weight,) = variables("weight")
    one, two = optimizer_of([weight]), optimizer_of([weight], name="the_other")
    add(one, weight)
    add(two, weight)
    with pytest.warns(UserWarning, match="'the_other' stays open with 1 micro-batch"):
        one.finalize_variable_values([weight])
    assert (one.pending_micro_batches, two.pending_micro_batches) == (0, 1)
    two.finalize_variable_values([weight])
    np.testing.assert_array_equal(value(weight), [-2, -2])
    one.finalize_variable_values([weight])  # warnings are errors


def test_an_optimizer_that_is_gone_is_forgotten():
    first, second = variables("first", "second")
    one = optimizer_of([first])
    add(optimizer_of([second]), second)
    one.finalize_variable_values([first, second])


def test_variables_are_copied_without_their_optimizer():
    (weight,) = variables("weight")
    optimizer = optimizer_of([weight])
    add(optimizer, weight)
    copied = pickle.loads(pickle.dumps(weight.trained_by))
    assert copied.trained() is None
    assert copy.deepcopy(weight.trained_by).trained() is None


class TwoPlayers(keras.Model):
    """Two layers, each trained by an optimizer of its own."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.players = [keras.layers.Dense(2, name="first"), keras.layers.Dense(2, name="second")]

    def call(self, x):
        return self.players[1](self.players[0](x))

    def compile(self, optimizers, **settings):
        super().compile(**settings)
        self.optimizers = optimizers

    def train_step(self, data):
        weights = [player.trainable_variables for player in self.players]
        x, y = data
        gradients = [self.gradients(x, y, own) for own in weights]
        for optimizer, own, found in zip(self.optimizers, weights, gradients, strict=True):
            optimizer.apply(found, own)
        return {"players": keras.ops.full((), len(self.players))}

    def gradients(self, x, y, weights):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = keras.ops.mean(keras.ops.square(self(x) - y))
            return tape.gradient(loss, [weight.value for weight in weights])
        self.zero_grad()
        keras.ops.mean(keras.ops.square(self(x) - y)).backward()
        return [weight.value.grad for weight in weights]


def fitted(optimizers, batch_size, **settings):
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    model = TwoPlayers()
    model(x)
    callbacks = settings.pop("callbacks", None)
    model.compile(optimizers, jit_compile=False, **settings)
    model.fit(x, x[:, :2], batch_size=batch_size, shuffle=False, verbose=0, callbacks=callbacks)
    return model.get_weights()


def windows():
    return [RangerOptimizer(0.1, 0.0, accumulation_steps=4) for _ in range(2)]


@pytest.mark.skipif(BACKEND == "jax", reason="train_step holds no other optimizer's state on JAX")
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize("compiled", [0, 1, None])
def test_a_model_with_two_optimizers_of_its_own(compiled):
    optimizers = windows()
    expected = fitted([keras.optimizers.SGD(0.1) for _ in range(2)], 12)
    if compiled is None:
        # What docs/streaming.md advises where the model is compiled with neither of them.
        close = keras.callbacks.LambdaCallback(
            on_train_end=lambda logs: [o.finalize_variable_values([]) for o in optimizers]
        )
        weights = fitted(optimizers, 4, callbacks=[close])
    else:
        weights = fitted(optimizers, 4, optimizer=optimizers[compiled])
    assert [int(o.iterations) for o in optimizers] == [1, 1]
    for actual, whole in zip(weights, expected, strict=True):
        np.testing.assert_allclose(actual, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_fit_that_fails_leaves_the_window_as_keras_leaves_its_optimizer(error):
    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise error

    x, y = data()
    optimizer = RangerOptimizer(0.1, 0.0, accumulation_steps=4)
    with pytest.raises(error):
        fit(network(optimizer), x, y, 6, callbacks=[Fail()])
    # Keras finalizes the optimizer of a failed fit on JAX, and only there.
    expected = (0, 1) if BACKEND == "jax" else (2, 0)
    assert (optimizer.pending_micro_batches, int(optimizer.iterations)) == expected
