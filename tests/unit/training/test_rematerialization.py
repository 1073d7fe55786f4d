"""When the backward pass runs layers again, and what that saves."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import tensorflow_ranger as ranger
from tensorflow_ranger.batch_size.plan import parse_bytes
from tensorflow_ranger.batch_size.size_policy import SearchedSize
from tensorflow_ranger.training import train_function
from tests.marks import first, thorough_but
from tests.models import assert_same_weights, fit, step_of, temporaries

UPDATES = 30  # more than a search takes
BACKEND = keras.config.backend()
only_jax = pytest.mark.skipif(BACKEND != "jax", reason="only XLA on JAX tells what it allocates")


def deep(dropout=0.2, blocks=24, width=64):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((32, width))
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        y = layers.Dense(2 * width, activation="gelu")(y)
        x = layers.Dropout(dropout)(layers.Dense(width)(y)) + x
    outputs = layers.Dense(1)(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=BACKEND == "jax")
    return model


def data(samples=16, width=64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 32, width)).astype("float32")
    return x, x[:, 0, :1]


@only_jax
@pytest.mark.parametrize(("blocks", "share"), thorough_but([(8, 0.5)], [(8, 0.5), (24, 0.35)]))
def test_memory_of_a_deep_model_is_a_fraction(blocks, share):
    x, y = data()

    def needed(rematerialize):
        # XLA takes long to compile random numbers, which need no memory here.
        model = ranger.microbatch(deep(0.0, blocks), 8, rematerialize=rematerialize)
        return temporaries(model, x, y, 8)

    assert needed(True) < share * needed(False)


@only_jax
def test_a_limit_below_one_sample_is_kept_by_running_layers_again(caplog):
    x, y = data(4)
    model, expected = deep(blocks=5), ranger.microbatch(deep(blocks=5), 1)
    step, state = step_of(ranger.microbatch(deep(blocks=5), 1, rematerialize=False), x, y, 1)
    limit = step.memory(state, (x, y, None), 1) - 1
    ranger.microbatch(model, "auto", memory_limit=limit)
    fit(model, x, y, 4, epochs=3)
    fit(expected, x, y, 4, epochs=3)
    assert "runs layers again" in caplog.text
    assert "calls again" in str(model.microbatch_plan)
    assert all(c.memory <= limit for c in model.microbatch_plan.candidates if c.fits)
    assert_same_weights(model, expected, 1e-5)


@only_jax
def test_without_rematerialization_such_a_limit_is_an_error():
    x, y = data(4, width=128)
    model = deep(0.0, blocks=2, width=128)
    ranger.microbatch(model, "auto", memory_limit="1MB", rematerialize=False)
    with pytest.raises(MemoryError, match="memory_limit must hold one sample"):
        fit(model, x, y, 4)


@pytest.mark.parametrize("value", [1, 0, -1, 2.5, "yes"])
def test_another_number_of_segments_is_refused(value):
    with pytest.raises(ValueError, match="a number of segments >= 2"):
        ranger.microbatch(deep(blocks=1), 4, rematerialize=value)


def test_layers_that_keras_would_run_again_are_refused():
    with keras.RematScope(mode="full"):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="again")])
    model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
    ranger.microbatch(model, 2)
    with pytest.raises(ValueError, match=r"keras\.RematScope, got \[.*'again'"):
        fit(model, np.ones((4, 3)), np.ones((4, 2)), 4)


def test_the_plan_tells_what_is_run_again():
    x, y = data()
    model = ranger.microbatch(deep(blocks=4), 4, rematerialize=3)
    assert model.microbatch_plan.rematerialization is None
    fit(model, x, y, 16)
    text = str(model.microbatch_plan)
    assert "in 2 segments: it keeps about" in text
    fit(ranger.microbatch(model, 4), x, y, 16)
    assert model.microbatch_plan.rematerialization is None


def inverse(size):
    return 1 / size


def train_by_the_clock(monkeypatch, model, x, y, limit, seconds_of=inverse, **settings):
    """Train `model` within `limit`, with measures that do not depend on the machine.

    A sample takes `seconds_of` the size, and a third more if all layers are run again. Of memory
    JAX knows all by itself.
    """
    succeeded = SearchedSize.succeeded

    def told(policy, size, seconds=None, memory=None):
        if seconds is None:
            succeeded(policy, size)
            return
        replays = model.make_train_function.__self__.maker.replays
        kept, repeated = 1.0, 0.0
        if policy.segments is not None or replays.searched == "fewer":
            choices = replays.choices(None)
            segments = policy.segments or choices[-1]
            kept, repeated = segments.memory / choices[0].memory, segments.repeated
        memory = None if BACKEND == "jax" else int(1e7 + 1e6 * size * kept)
        succeeded(policy, size, len(x) * seconds_of(size) * (1 + repeated / 3), memory)

    monkeypatch.setattr(SearchedSize, "succeeded", told)
    if BACKEND != "jax":
        monkeypatch.setattr(train_function, "bytes_in_use", lambda: 10**7)
    ranger.microbatch(model, "auto", memory_limit=limit, **settings)
    fit(model, x, y, len(x), epochs=UPDATES)
    assert not model.microbatch_plan.measuring
    return model.microbatch_plan


def layers_run_again(plan):
    """Return the number of layers' calls that the backward pass runs again."""
    (count,) = re.findall(r"runs (\d+) of", plan.rematerialization)
    return int(count)


def repeated_by_least_memory(x, y, blocks=3):
    """Return that number for the segments that need the least memory."""
    model = ranger.microbatch(deep(blocks=blocks), 8, rematerialize=True)
    fit(model, x, y, 8)
    return layers_run_again(model.microbatch_plan)


def test_a_search_for_segments_changes_no_weights(monkeypatch):
    x, y = data(8)
    model, expected = deep(blocks=3), ranger.microbatch(deep(blocks=3), 8, rematerialize=False)
    limit = "12.5MB"
    if BACKEND == "jax":
        step, state = step_of(ranger.microbatch(deep(blocks=3), 1, rematerialize=False), x, y, 1)
        limit = step.memory(state, (x, y, None), 2)
    plan = train_by_the_clock(monkeypatch, model, x, y, limit)
    fit(expected, x, y, 8, epochs=UPDATES)
    assert plan.segments > 0
    assert plan.chosen > max(one.size for one in plan.candidates if one.fits and not one.segments)
    assert "layers' calls again, in" in plan.rematerialization
    assert_same_weights(model, expected, 1e-5)


@first
def test_where_layers_are_always_run_again_they_are_as_few_as_fit(monkeypatch):
    x, y = data(8)
    model, expected = deep(blocks=3), ranger.microbatch(deep(blocks=3), 8, rematerialize=False)
    plan = train_by_the_clock(monkeypatch, model, x, y, "1GB", rematerialize=True)
    fit(expected, x, y, 8, epochs=UPDATES)
    assert plan.chosen == 8
    assert 0 < layers_run_again(plan) < repeated_by_least_memory(x, y)
    assert "with which the least memory is needed" in plan.reason
    assert_same_weights(model, expected, 1e-5)


@first
def test_where_one_sample_does_not_fit_as_few_layers_are_run_again_as_fit(monkeypatch, caplog):
    x, y = data(8)
    model, expected = deep(blocks=6), ranger.microbatch(deep(blocks=6), 8, rematerialize=False)
    limit = "10.8MB"
    if BACKEND == "jax":
        step, state = step_of(ranger.microbatch(deep(blocks=6), 1, rematerialize=False), x, y, 1)
        limit = step.memory(state, (x, y, None), 1) - 1
    plan = train_by_the_clock(monkeypatch, model, x, y, limit, seconds_of=lambda size: 1.0)
    fit(expected, x, y, 8, epochs=UPDATES)
    assert "One sample does not fit the memory: the backward pass runs layers again" in caplog.text
    assert 0 < layers_run_again(plan) < repeated_by_least_memory(x, y, 6)
    assert all(c.memory <= parse_bytes(limit) for c in plan.candidates if c.fits)
    assert_same_weights(model, expected, 1e-5)


@only_jax
def test_the_peak_in_the_plan_is_that_of_the_compiled_step(monkeypatch):
    x, y = data(8)
    step, state = step_of(ranger.microbatch(deep(blocks=3), 1, rematerialize=False), x, y, 1)
    limit = step.memory(state, (x, y, None), 4) - 1
    model = deep(blocks=3)
    plan = train_by_the_clock(monkeypatch, model, x, y, limit)
    assert plan.chosen == 8
    (found,) = [one for one in plan.candidates if one.fits and one.size == 8]
    _, step = model.make_train_function.__self__._step_for((x, y, None))
    assert step.memory(state, (x, y, None), 8) == found.memory <= limit


def test_a_table_and_a_stateful_layer_are_run_once():
    keras.utils.set_random_seed(0)
    words = keras.Input(batch_shape=(8, 5), dtype="int32")
    x = layers.Embedding(9, 4)(words)
    x = layers.GRU(4, stateful=True)(x)
    for _ in range(6):
        x = layers.Dense(4, activation="softsign")(x)
    model = keras.Model(words, x)
    model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (16, 5)), rng.normal(size=(16, 4))
    expected = keras.models.clone_model(model)
    expected.set_weights(model.get_weights())
    expected.compile("sgd", "mse", jit_compile=BACKEND == "jax")
    fit(ranger.microbatch(model, 4, rematerialize=3), x, y, 8, epochs=2)
    fit(ranger.microbatch(expected, 4, rematerialize=False), x, y, 8, epochs=2)
    assert "of 8 layers' calls" in model.microbatch_plan.rematerialization
    assert_same_weights(model, expected)
