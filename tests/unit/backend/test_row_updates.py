"""Which optimizers leave the rows of a table as they are that have no gradient."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.backend import row_updates


class Own(keras.optimizers.Adagrad):
    """An Adagrad of somebody's, which may do anything."""


ALONE = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    ),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
}
OTHERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "decay": lambda: keras.optimizers.Adagrad(0.1, weight_decay=0.1),
    "average": lambda: keras.optimizers.SGD(0.1, use_ema=True),
    "clipnorm": lambda: keras.optimizers.SGD(0.1, clipnorm=1.0),
    "global_clipnorm": lambda: keras.optimizers.SGD(0.1, global_clipnorm=1.0),
    "clipvalue": lambda: keras.optimizers.SGD(0.1, clipvalue=1.0),
    "scaled": lambda: keras.optimizers.SGD(0.1, loss_scale_factor=2.0),
    "accumulating": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "adam": lambda: keras.optimizers.Adam(0.1),
    "wrapped": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    "own": lambda: Own(0.1),
}


def variable(**settings):
    return keras.Variable(np.ones((3, 2), "float32"), **settings)


@pytest.mark.parametrize("optimizer", ALONE)
def test_rows_without_a_gradient_stay(optimizer):
    optimizer, table = ALONE[optimizer](), variable()
    assert row_updates.leave_others(optimizer, table)
    gradient = np.zeros((3, 2), "float32")
    gradient[1] = 1.0
    optimizer.apply([keras.ops.convert_to_tensor(gradient)], [table])
    moved = keras.ops.convert_to_numpy(table.value) != 1.0
    np.testing.assert_array_equal(moved.any(axis=1), [False, True, False])


@pytest.mark.parametrize("optimizer", OTHERS)
def test_all_rows_may_move_with_another_optimizer(optimizer):
    assert not row_updates.leave_others(OTHERS[optimizer](), variable())


@pytest.mark.parametrize("name", ["regularizer", "constraint", "overwrite_with_gradient"])
def test_all_rows_may_move_of_such_a_variable(name):
    table = variable()
    given = {"regularizer": keras.regularizers.L2(), "constraint": keras.constraints.NonNeg()}
    setattr(table, name, given.get(name, True))
    assert not row_updates.leave_others(keras.optimizers.SGD(0.1), table)
