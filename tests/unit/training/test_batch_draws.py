"""accumulate_gradients: micro-batches draw what Keras' layers would draw for the whole batch."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger import accumulate_gradients
from tests.marks import thorough_but
from tests.unit.training.gradients import BACKEND, MODES, compiled

BATCH, WIDTH = 24, 8
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(BATCH, 6)), RNG.normal(size=(BATCH, WIDTH))
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-12


class NoisyDense(layers.Layer):
    """Draws noise for its kernel: as many rows as a micro-batch has, but not for its samples."""

    def build(self, shape):
        self.seeds = keras.random.SeedGenerator(5)
        self.kernel = self.add_weight(shape=(WIDTH, WIDTH))

    def call(self, x, training=False):
        noise = keras.random.uniform((WIDTH, WIDTH), dtype=x.dtype, seed=self.seeds)
        return ops.matmul(x, self.kernel + noise if training else self.kernel)


def network(*hidden):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), layers.Dense(WIDTH), *(h() for h in hidden)])


def drawing():
    return network(
        lambda: layers.Dropout(0.3),
        NoisyDense,
        lambda: layers.Dropout(0.4, noise_shape=(1, None)),
        lambda: layers.AlphaDropout(0.2, seed=3),
    )


def loss_of(outputs, targets):
    count = ops.cast(ops.shape(targets)[0], outputs.dtype)  # `ops.mean` rounds to float32 on JAX
    return ops.sum((outputs - targets) ** 2) / count


def accumulated(model, size, is_whole, mode="eager"):
    """Return the gradients of two batches, one after the other."""
    if BACKEND == "jax":
        return [*_on_jax(model, size, is_whole, mode)]
    variables = model.trainable_variables

    def outputs(batch):
        return model(batch[0], training=True), batch[1]

    def call(batch):
        if is_whole:
            return accumulate_gradients(
                lambda given: loss_of(*given), variables, batch, size, outputs_fn=outputs
            )[1]
        return accumulate_gradients(lambda rows: loss_of(*outputs(rows)), variables, batch, size)[1]

    step = compiled(call, mode)
    batch = ops.convert_to_tensor(X), ops.convert_to_tensor(Y)
    return [step(batch) for _ in range(2)]


def _on_jax(model, size, is_whole, mode):
    trainable = [v.value for v in model.trainable_variables]
    seeds = [v.value for v in model.non_trainable_variables]
    for advance in range(2):
        moved = [seed + ops.cast(ops.stack([0, advance]), seed.dtype) for seed in seeds]

        def outputs(trainable, batch, moved=moved):
            return model.stateless_call(trainable, moved, batch[0], training=True)[0], batch[1]

        def call(batch, outputs=outputs):
            if is_whole:
                return accumulate_gradients(
                    lambda _, given: loss_of(*given), trainable, batch, size, outputs_fn=outputs
                )[1]
            return accumulate_gradients(
                lambda trainable, rows: loss_of(*outputs(trainable, rows)), trainable, batch, size
            )[1]

        yield compiled(call, mode)((X, Y))


def whole(model, mode="eager"):
    """Return the gradients of two passes over the batch."""
    if BACKEND == "torch":  # which draws from a generator of our own within micro-batches
        return accumulated(model, BATCH, False)
    if BACKEND == "jax":
        import jax

        def loss_fn(trainable, seeds):
            outputs, seeds = model.stateless_call(trainable, seeds, X, training=True)
            return loss_of(outputs, Y), seeds

        found, seeds = [], [v.value for v in model.non_trainable_variables]
        for _ in range(2):
            trainable = [v.value for v in model.trainable_variables]
            gradients, seeds = jax.grad(loss_fn, has_aux=True)(trainable, seeds)
            found.append(gradients)
        return found
    import tensorflow as tf

    @tf.function(jit_compile=mode == "xla")
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(model(x, training=True), y)
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    return [step(X, Y) for _ in range(2)]


def assert_close(actual, expected):
    for one, other in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)


QUICK_MODE = "jit" if BACKEND == "jax" else "eager"
CASES = [*itertools.product([7, WIDTH, BATCH], [False, True], MODES)]


@pytest.mark.parametrize(
    ("size", "is_whole", "mode"),
    thorough_but([case for case in CASES if case[0] == 7 or case[2] == QUICK_MODE], CASES),
)
def test_draws_are_those_of_the_whole_batch(float64, size, is_whole, mode):
    model, other = drawing(), drawing()
    assert_close(accumulated(model, size, is_whole, mode), whole(other, mode))
    if BACKEND != "jax":
        assert_close([v.value for v in model.variables], [v.value for v in other.variables])


def test_a_batch_of_one_sample_a_micro_batch(float64):
    assert_close(accumulated(drawing(), 1, False), whole(drawing()))


def test_the_next_batch_draws_other_numbers(float64):
    first, second = accumulated(drawing(), 7, False)
    assert np.abs(ops.convert_to_numpy(first[0]) - ops.convert_to_numpy(second[0])).max() > 0.1


if BACKEND != "jax":

    @pytest.mark.parametrize(("hidden", "calls"), [([], 3), ([lambda: layers.Dropout(0.5)], 4)])
    def test_a_model_that_draws_is_called_once_more(hidden, calls):
        model, called = network(*hidden), []

        def loss_fn(batch):
            called.append(1)
            return loss_of(model(batch[0], training=True), batch[1])

        batch = X.astype("float32"), Y.astype("float32")
        accumulate_gradients(loss_fn, model.trainable_variables, batch, 8)
        assert len(called) == calls
