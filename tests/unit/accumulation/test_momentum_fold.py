"""SGD's momentum holds the sum only where that gives the same update."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.accumulation.momentum_fold import MomentumFold


class SGD(keras.optimizers.SGD):
    """A user's optimizer that is named as Keras' own."""


def is_exact(optimizer, dtype="float32", total=None):
    return MomentumFold.is_exact(optimizer, [keras.Variable(np.zeros(2), dtype=dtype)], total)


def test_heavy_ball_momentum_may_hold_the_sum():
    decay = {"weight_decay": 0.1, "use_ema": True}
    assert is_exact(keras.optimizers.SGD(0.1, momentum=0.5))
    assert is_exact(keras.optimizers.SGD(0.1, momentum=0.5, **decay))


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.0},
        {"momentum": 0.5, "nesterov": True},
        {"momentum": 0.5, "clipnorm": 1.0},
        {"momentum": 0.5, "global_clipnorm": 1.0},
        {"momentum": 0.5, "clipvalue": 1.0},
        {"momentum": 0.5, "loss_scale_factor": 8.0},
        {"momentum": 0.5, "gradient_accumulation_steps": 2},
    ],
)
def test_other_settings_of_sgd_change_the_update(settings):
    assert not is_exact(keras.optimizers.SGD(0.1, **settings))


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.RMSprop(0.1, momentum=0.5), SGD(0.1, momentum=0.5)]
)
def test_other_optimizers_may_do_anything(optimizer):
    assert not is_exact(optimizer)


@pytest.mark.parametrize(
    ("dtype", "total", "expected"),
    [
        ("bfloat16", None, False),
        ("bfloat16", "bfloat16", True),
        ("float32", "float32", True),
        ("float32", "bfloat16", False),
    ],
)
def test_the_momentum_has_the_dtype_of_the_sum(dtype, total, expected):
    assert is_exact(keras.optimizers.SGD(0.1, momentum=0.5), dtype, total) == expected


def test_a_float8_scale_is_no_gradient():
    scale = keras.Variable(np.ones(2), dtype="float32")
    scale.overwrite_with_gradient = True
    assert not MomentumFold.is_exact(keras.optimizers.SGD(0.1, momentum=0.5), [scale])
