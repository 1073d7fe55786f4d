"""accumulate_gradients with outputs_fn and has_aux: losses of the whole batch, and metrics."""

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger import accumulate_gradients

BACKEND = keras.config.backend()
SAMPLES, WIDTH = 14, 4
RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(2, SAMPLES, 6)).astype("float32")
LABELS = RNG.integers(0, 3, SAMPLES)
FIRST, SECOND = RNG.normal(size=(2, 6, WIDTH)).astype("float32")
SCALE = np.float32(1.5)
SIZES = [1, 4, 5, SAMPLES]


def info_nce(left, right, scale):
    logits = ops.exp(scale) * ops.matmul(ops.tanh(left), ops.transpose(ops.tanh(right)))
    return -ops.mean(ops.diagonal(ops.log_softmax(logits)))


def embeddings(weights, x):
    return {"left": ops.matmul(x[0], weights[0]), "right": ops.matmul(x[1], weights[1])}


def value_and_gradients(size=None):
    """Return value and gradients of the loss, in micro-batches of `size` or by the framework."""
    weights = [ops.convert_to_tensor(each) for each in (FIRST, SECOND, SCALE)]

    def loss_of(weights, outputs):
        return info_nce(outputs["left"], outputs["right"], weights[2])

    if BACKEND == "jax":
        import jax

        if size is None:
            return jax.value_and_grad(lambda w: loss_of(w, embeddings(w, (LEFT, RIGHT))))(weights)
        return jax.jit(
            lambda w: accumulate_gradients(loss_of, w, (LEFT, RIGHT), size, outputs_fn=embeddings)
        )(weights)
    variables = [keras.Variable(each) for each in weights]
    values = [variable.value for variable in variables]
    if size is None:
        return by_framework(
            lambda: loss_of(
                values, embeddings(values, [*map(ops.convert_to_tensor, (LEFT, RIGHT))])
            ),
            values,
        )
    return accumulate_gradients(
        lambda outputs: loss_of(values, outputs),
        variables,
        (LEFT, RIGHT),
        size,
        outputs_fn=lambda x: embeddings(values, x),
    )


def by_framework(loss_fn, values):
    """Return ``loss_fn()`` and its gradients by `values`, on TensorFlow or PyTorch."""
    if BACKEND == "torch":
        import torch

        loss = loss_fn()
        return loss.detach(), list(torch.autograd.grad(loss, list(values)))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = loss_fn()
    return loss, tape.gradient(loss, list(values))


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.max(np.abs(b)), 0.1))


@pytest.mark.parametrize("size", SIZES)
def test_a_contrastive_loss_is_that_of_the_whole_batch(size):
    value, gradients = value_and_gradients(size)
    expected, others = value_and_gradients()
    assert_close(value, expected)
    assert_close(list(gradients), list(others))
    # What a temperature's gradient is, asserted by itself: replays make it K times too large.
    assert abs(float(ops.convert_to_numpy(gradients[2]))) > 1e-3
    assert_close(gradients[2], others[2])


def linear(micro_batch, weight):
    x, y = micro_batch
    scores = ops.matmul(ops.convert_to_tensor(x), weight)
    losses = ops.logsumexp(scores, axis=-1) - ops.sum(scores * ops.one_hot(y, WIDTH), axis=-1)
    hits = ops.equal(ops.cast(ops.argmax(scores, axis=-1), "int32"), ops.cast(y, "int32"))
    return losses, ops.mean(ops.cast(hits, "float32"))


def accumulated(make_result, **settings):
    """Return what accumulate_gradients makes of a linear model whose result is `make_result`'s."""
    batch = (LEFT, LABELS)
    if BACKEND == "jax":
        return accumulate_gradients(
            lambda weight, data: make_result(*linear(data, weight)),
            ops.convert_to_tensor(FIRST),
            batch,
            4,
            **settings,
        )
    weight = keras.Variable(FIRST)
    return accumulate_gradients(
        lambda data: make_result(*linear(data, weight)), [weight], batch, 4, **settings
    )


def expected_loss_and_accuracy():
    scores = LEFT.astype("float64") @ FIRST
    losses = np.log(np.exp(scores).sum(-1)) - scores[np.arange(SAMPLES), LABELS]
    return losses.mean(), np.mean(scores.argmax(-1) == LABELS)


def test_aux_is_the_mean_over_the_samples():
    (value, aux), _ = accumulated(
        lambda losses, accuracy: (ops.mean(losses), {"accuracy": accuracy}), has_aux=True
    )
    loss, accuracy = expected_loss_and_accuracy()
    np.testing.assert_allclose(float(value), loss, rtol=1e-5)
    np.testing.assert_allclose(float(aux["accuracy"]), accuracy, rtol=1e-6)


def test_aux_beside_a_pair_is_weighted_by_mass():
    (value, aux), _ = accumulated(
        lambda losses, accuracy: ((ops.sum(losses), ops.shape(losses)[0]), accuracy), has_aux=True
    )
    loss, accuracy = expected_loss_and_accuracy()
    np.testing.assert_allclose([float(value), float(aux)], [loss, accuracy], rtol=1e-5)


def test_an_accuracy_that_is_taken_for_a_mass_is_told():
    with pytest.warns(UserWarning, match="If they are a metric, such as an accuracy, give has_aux"):
        accumulated(lambda losses, accuracy: (ops.mean(losses), accuracy))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda losses, accuracy: ops.mean(losses), "must return a pair .loss, aux."),
        (lambda losses, accuracy: (ops.mean(losses), losses), "aux of loss_fn must be nested"),
    ],
)
def test_what_is_no_aux_is_refused(result, message):
    with pytest.raises(TypeError, match=message):
        accumulated(result, has_aux=True)


def test_a_loss_of_the_batch_must_be_a_scalar():
    def not_reduced(*arguments):
        return arguments[-1]

    def first_array(*arguments):
        return arguments[-1][0]

    variables = ops.ones(3) if BACKEND == "jax" else [keras.Variable(FIRST)]
    with pytest.raises(TypeError, match="With outputs_fn, loss_fn must return a scalar tensor"):
        accumulate_gradients(not_reduced, variables, (LEFT,), 4, outputs_fn=first_array)


if BACKEND != "jax":

    def normalized():
        keras.utils.set_random_seed(3)
        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(5),
                layers.Dropout(0.5, seed=7),
                layers.BatchNormalization(trainable=False),
                layers.Dense(WIDTH),
            ]
        )

    def reference(model):
        """Return the gradients of one pass over the batch, and move its seeds on."""
        if BACKEND == "torch":  # whose own stream Keras' layers do not draw within micro-batches
            return drawn(model, SAMPLES)

        def loss_fn():
            z = model(ops.convert_to_tensor(LEFT), training=True)
            return info_nce(z, z * z, 0.3)

        return by_framework(loss_fn, [v.value for v in model.trainable_variables])[1]

    def drawn(model, size, compiled=False):
        def accumulate(x):
            return accumulate_gradients(
                lambda z: info_nce(z, z * z, 0.3),
                model.trainable_variables,
                x,
                size,
                outputs_fn=lambda x: model(x, training=True),
            )

        if not compiled:
            return accumulate(LEFT)[1]
        import tensorflow as tf

        return tf.function(accumulate)(tf.constant(LEFT))[1]

    @pytest.mark.parametrize("compiled", [False, True] if BACKEND == "tensorflow" else [False])
    def test_dropout_is_the_same_in_both_passes_and_seeds_move_once(compiled):
        ours, other = normalized(), normalized()
        for _ in range(2):  # from the seeds that the first batch has left
            assert_close(drawn(ours, 4, compiled), list(reference(other)))
        assert_close(ours.non_trainable_variables, other.non_trainable_variables)


if BACKEND == "torch":

    def test_a_module_of_pytorch_is_left_with_the_buffers_of_one_pass():
        import torch

        def make():
            torch.manual_seed(0)
            return torch.nn.Sequential(
                torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5)
            )

        ours, other = make(), make()
        torch.manual_seed(1)
        parts = [other(torch.tensor(LEFT[start : start + 7])) for start in (0, 7)]
        z = torch.cat(parts)
        expected = torch.autograd.grad(info_nce(z, z * z, 0.3), list(other.parameters()))
        torch.manual_seed(1)
        _, found = accumulate_gradients(
            lambda z: info_nce(z, z * z, 0.3),
            ours.parameters(),
            LEFT,
            7,
            outputs_fn=lambda x: ours(x),
        )
        assert_close(found, list(expected))
        for buffer, by_framework in zip(ours.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(buffer, by_framework)
