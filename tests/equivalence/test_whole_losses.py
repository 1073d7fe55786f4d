"""Losses in which samples meet: micro-batches make the updates of the whole batch."""

import keras
import numpy as np
import pytest

from tensorflow_ranger import microbatch
from tests.marks import first
from tests.models import data, fit
from tests.references.batch_losses import LOSSES, WIDTH, CompiledLoss, OwnLoss, info_nce, siglip

pytestmark = pytest.mark.usefixtures("float64")

BACKEND = keras.config.backend()
SAMPLES, BATCH, EPOCHS = 48, 24, 10
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-10
# Where Keras' own numbers are drawn, and where those of one micro-batch are the whole batch's.
DROPOUT = 0.2
RATES = [0.0, DROPOUT] if BACKEND == "torch" else [DROPOUT]


def network(loss, is_own, dropout):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="tanh", kernel_regularizer="l2")(inputs)
    x = keras.layers.Dropout(dropout)(x)
    outputs = keras.layers.Dense(WIDTH, use_bias=False)(x)  # some losses know no shift
    settings = {"optimizer": "adam", "jit_compile": BACKEND == "jax"}
    if is_own:
        model = OwnLoss(inputs, outputs).take(loss)
        model.compile(**settings)
        return model
    model = keras.Model(inputs, outputs)
    compiled = CompiledLoss(loss)
    model.own = compiled.variables
    model.compile(loss=compiled, **settings)
    return model


def assert_same_updates(loss, is_own, dropout, sizes):
    """Fail unless micro-batches of `sizes` move each variable as plain `fit` does."""
    x, y = data(SAMPLES)

    def make():
        return network(loss, is_own, dropout)

    plain = make()
    if dropout and BACKEND == "torch":
        microbatch(plain, BATCH)
    before = plain.get_weights()
    assert len(plain.own) == sum("own" in variable.path for variable in plain.trainable_variables)
    history = fit(plain, x, y, BATCH, EPOCHS).history["loss"]
    assert np.isfinite(history).all()
    for size in sizes:
        model = microbatch(make(), size)
        actual = fit(model, x, y, BATCH, EPOCHS).history["loss"]
        for variable, start, expected in zip(
            model.weights, before, plain.get_weights(), strict=True
        ):
            moved = np.max(np.abs(expected - start))
            assert moved > 1e-4, variable.path
            np.testing.assert_allclose(
                variable, expected, rtol=0, atol=TOLERANCE * moved, err_msg=variable.path
            )
        # On JAX Keras' `mean` rounds through float32, now and then to the neighbour.
        np.testing.assert_allclose(actual, history, rtol=max(TOLERANCE, 1e-8))


def ways(everywhere, on_first=()):
    """Return each loss with both ways to `compile` it.

    Those in `everywhere` run in every suite, those in `on_first` in that of the first backend, and
    the others in the thorough run.
    """
    marks = dict.fromkeys(on_first, (first,)) | dict.fromkeys(everywhere, ())
    return [
        pytest.param(
            loss,
            is_own,
            marks=marks.get((loss, is_own), (pytest.mark.thorough,)),
            id=f"{loss.__name__}-{'compute_loss' if is_own else 'compiled'}",
        )
        for loss in LOSSES
        for is_own in (False, True)
    ]


# Both ways for the losses with weights of their own, and by turns for the others, which hardly
# depend on the backend.
BY_TURNS = [(loss, place % 2 == 0) for place, loss in enumerate(LOSSES)]
BOTH_WAYS = [(loss, is_own) for loss in (info_nce, siglip) for is_own in (False, True)]


@pytest.mark.parametrize(("loss", "is_own"), ways(BOTH_WAYS, BY_TURNS))
@pytest.mark.parametrize("dropout", RATES)
def test_a_loss_of_the_batch(loss, is_own, dropout):
    assert_same_updates(loss, is_own, dropout, (7,))


@pytest.mark.parametrize(("loss", "is_own"), ways([(info_nce, False)]))
@pytest.mark.parametrize("dropout", RATES)
def test_a_loss_of_the_batch_at_every_size(loss, is_own, dropout):
    assert_same_updates(loss, is_own, dropout, (1, 16, BATCH))
