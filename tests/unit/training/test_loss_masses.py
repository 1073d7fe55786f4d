"""What a loss is of a batch is what Keras' own call returns, masks and weights included."""

import numpy as np
import pytest
from keras import losses, ops

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.training.loss_masses import value_of

RNG = np.random.default_rng(0)
STEPS = 4
REDUCTIONS = ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", None]


class MasksItself(losses.Loss):
    """Leaves out the positions whose output is negative."""

    def call(self, y_true, y_pred):
        values = ops.mean(ops.abs(y_pred - y_true), axis=-1)
        keras_internals.set_mask(values, y_pred[..., 0] > 0)
        return values


def ignoring(reduction):
    return losses.SparseCategoricalCrossentropy(True, ignore_class=1, reduction=reduction)


def crossentropy(reduction):
    return losses.SparseCategoricalCrossentropy(True, reduction=reduction)


@pytest.mark.parametrize("weights", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", [crossentropy, ignoring, MasksItself])
def test_the_value_is_that_of_keras(make, reduction, masked, weights):
    loss = make(reduction=reduction)
    y = RNG.integers(0, 3, (5, STEPS))
    if make is MasksItself:
        y = RNG.normal(size=(5, STEPS, 3))
    given = RNG.uniform(size=(5, STEPS)) if weights else None
    outputs = RNG.normal(size=(5, STEPS, 3))
    mask = RNG.uniform(size=(5, STEPS)) < 0.6

    def of(function):
        y_pred = ops.convert_to_tensor(outputs, "float32")
        if masked:
            keras_internals.set_mask(y_pred, ops.convert_to_tensor(mask))
        # A copy each: Keras on PyTorch multiplies weights by masks in place.
        weight = None if given is None else ops.convert_to_tensor(given, "float32")
        return ops.convert_to_numpy(function(ops.convert_to_tensor(y), y_pred, weight))

    found = of(lambda *seen: value_of(loss, *seen))
    np.testing.assert_allclose(found, of(loss), rtol=1e-6)


def test_the_value_by_hand():
    loss = losses.MeanAbsoluteError()
    y, y_pred = (ops.convert_to_tensor(RNG.normal(size=(5, STEPS, 3)), "float32") for _ in "ab")
    by_hand = np.mean(np.abs(ops.convert_to_numpy(y_pred) - ops.convert_to_numpy(y)))
    np.testing.assert_allclose(ops.convert_to_numpy(value_of(loss, y, y_pred, None)), by_hand, 1e-6)
