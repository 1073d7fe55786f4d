"""The steps of samples as samples of their own."""

import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.training.chunked_head import rows


def test_steps_become_samples():
    tensor = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    np.testing.assert_array_equal(rows.as_rows(tensor, 2), tensor.reshape(6, 4))
    np.testing.assert_array_equal(rows.as_rows(tensor, 1), tensor)


def test_each_row_has_the_weight_of_its_sample():
    weight = np.array([[1.0], [2.0]])
    found = ops.convert_to_numpy(rows.weights_as_rows(weight, (2, 3)))
    np.testing.assert_array_equal(found, [1.0] * 3 + [2.0] * 3)
    assert rows.weights_as_rows(None, (2, 3)) is None


@pytest.mark.parametrize(
    ("targets", "weights", "reason"),
    [
        ([(8, 5)], None, None),
        ([(8, 5)], (8, 1), None),
        ([(8, 5, 1)], (8, 5), None),
        ([(8,)], None, r"their shapes are [(8,)]"),
        ([(8, 5), (8, 5)], None, r"their shapes are [(8, 5), (8, 5)]"),
        ([(8, 5)], (8,), "sample weights of shape (8,) are for targets of (8, 5)"),
        ([(8, 5)], (8, 4), "sample weights of shape (8, 4) are for targets of (8, 5)"),
    ],
)
def test_targets_and_weights_must_be_of_rows(targets, weights, reason):
    weights = None if weights is None else np.ones(weights)
    found = rows.why_no_rows([np.ones(shape) for shape in targets], weights, 2)
    assert found is None if reason is None else reason in found
