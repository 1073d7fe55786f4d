"""What a user may write as `inner`, and what each mistake is answered with."""

from typing import Any, cast

import keras
import pytest

from tensorflow_ranger import RangerOptimizer
from tensorflow_ranger.optimizers import inner


def test_the_default_is_sgd_with_momentum():
    optimizer = inner.resolve("sgd")
    assert type(optimizer).__name__ == "SGD"
    assert optimizer.momentum == 0.9


def test_an_identifier_takes_arguments():
    optimizer = inner.resolve(
        "adam", learning_rate=0.5, weight_decay=0.1, global_clipnorm=2.0, beta_1=0.8
    )
    config = optimizer.get_config()
    assert config["learning_rate"] == 0.5
    assert config["weight_decay"] == 0.1
    assert config["global_clipnorm"] == 2.0
    assert config["beta_1"] == 0.8


def test_a_config_is_an_identifier():
    config = keras.optimizers.serialize(keras.optimizers.SGD(0.5, momentum=0.1))
    optimizer = inner.resolve(config, clipnorm=1.0)
    assert optimizer.momentum == pytest.approx(0.1)
    assert optimizer.clipnorm == 1.0


def test_a_schedule_is_a_learning_rate():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    assert float(inner.resolve("adam", learning_rate=schedule).learning_rate) == pytest.approx(0.1)


def test_an_instance_is_taken_as_it_is():
    optimizer = keras.optimizers.Adam()
    assert inner.resolve(optimizer) is optimizer


@pytest.mark.parametrize(
    ("argument", "value"),
    [("learning_rate", 0.1), ("momentum", 0.0), ("weight_decay", 0.1), ("use_ema", False)],
)
def test_an_argument_beside_an_instance_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument} cannot be given beside an optimizer"):
        RangerOptimizer(inner=keras.optimizers.Adam(), **{argument: value})


def test_an_unknown_argument_is_named():
    with pytest.raises(ValueError, match="momentun is no argument of the inner optimizer"):
        RangerOptimizer(momentun=0.9)


def test_momentum_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"momentum is no argument .* inner='adam'"):
        RangerOptimizer(inner="adam", momentum=0.9)


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("acumulation_steps", "accumulation_steps"),
        ("gradient_acumulation_steps", "accumulation_steps"),
        ("look_ahead", "lookahead"),
        ("lerning_rate", "learning_rate"),
        ("clip_norm", "clipnorm"),
        ("wieght_decay", "weight_decay"),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", keras.optimizers.SGD()])
def test_a_misspelt_argument_is_answered_with_the_nearest(argument, nearest, optimizer):
    with pytest.raises(ValueError, match=rf"{argument} .* Did you mean {nearest}\?$"):
        RangerOptimizer(inner=optimizer, **cast(Any, {argument: 4}))


@pytest.mark.parametrize("argument", ["nothing_like_it", "momentum", "loss_scale_facto"])
def test_what_would_be_refused_is_not_suggested(argument):
    with pytest.raises(ValueError, match=r"It takes amsgrad, beta_1, .*weight_decay") as error:
        RangerOptimizer(inner="adam", **cast(Any, {argument: 4}))
    assert "gradient_accumulation_steps" not in str(error.value)
    assert "loss_scale_factor" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("adam", "'adam'"),
        (keras.optimizers.Adam(), r"Adam\(...\)"),
        (keras.optimizers.Adam, r"Adam\(...\)"),
    ],
)
@pytest.mark.parametrize("argument", ["learning_rate", "momentum"])
def test_an_optimizer_as_another_argument_suggests_inner(value, remedy, argument):
    with pytest.raises(TypeError, match=f"{argument} must not be an .* as inner={remedy}"):
        RangerOptimizer(**{argument: value})


@pytest.mark.parametrize("name", ["adamm", "LossScaleOptimizer"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=f"inner must name a Keras optimizer: got '{name}'"):
        RangerOptimizer(inner=name)


@pytest.mark.parametrize("value", [keras.optimizers.Adam, 3, None])
def test_what_is_no_optimizer_is_refused(value):
    with pytest.raises(TypeError, match="inner must be a Keras identifier"):
        RangerOptimizer(inner=value)


def test_a_loss_scale_optimizer_belongs_outside():
    with pytest.raises(ValueError, match="put it outside"):
        RangerOptimizer(inner=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))


def test_an_inner_optimizer_that_accumulates_is_refused():
    adam = keras.optimizers.Adam(gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="got gradient_accumulation_steps=4"):
        RangerOptimizer(inner=adam)


def test_a_window_in_a_window_is_refused():
    with pytest.raises(ValueError, match="inner must not be a RangerOptimizer"):
        RangerOptimizer(inner=RangerOptimizer())
