"""Contract: Keras' trainer on JAX takes state and batches as `keras_internals` takes it."""

import keras
import numpy as np
import pytest

from tensorflow_ranger.backend import arrays, keras_internals

if keras.config.backend() != "jax":
    pytest.skip("Keras' trainer on JAX", allow_module_level=True)

X, Y = np.ones((6, 2), "float32"), np.ones((6, 1), "float32")


def model_of():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    return model


def test_return_state_is_where_fit_looks_when_it_ends():
    model, seen = model_of(), []
    before = model.get_weights()

    def train(state, iterator):
        seen.append([len(group) for group in state])
        state = [[value + 1 for value in state[0]], *state[1:]]
        keras_internals.return_state(model, state)
        raise RuntimeError("a batch fails")

    model.make_train_function = lambda force=False: setattr(model, "train_function", train)
    with pytest.raises(RuntimeError, match="a batch fails"):
        model.fit(X, Y, verbose=0)
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    assert seen == [[len(group) for group in variables]]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old + 1)
    assert all(v.value is not None for group in variables for v in group)


def test_a_train_function_takes_and_returns_state_and_takes_batches_from_an_iterator():
    # What `TrainFunction` is written for, beside its own methods.
    model, seen = model_of(), []
    model.compile("adam", "mse", jit_compile=False, steps_per_execution=2)

    def train(state, iterator):
        seen.append([leaf.shape for leaf in keras.tree.flatten(next(iterator))])
        next(iterator, None)
        return {"loss": 0.0}, state

    model.make_train_function = lambda force=False: setattr(model, "train_function", train)
    model.fit(X, Y, batch_size=2, shuffle=False, verbose=0)
    assert seen == [[(2, 2), (2, 1)]] * 2


def test_hand_on_uneven_batches_converts_those_and_shards_the_others():
    mesh = keras.distribution.DeviceMesh((1,), ("batch",), devices=["cpu:0"])
    given = []

    class Looks(keras.Sequential):
        def train_step(self, state, data):
            given.append(keras.tree.flatten(data)[0])
            return super().train_step(state, data)

    keras.distribution.set_distribution(keras.distribution.DataParallel(mesh))
    try:
        model = Looks([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=False)

        def hand_on(iterator):
            keras_internals.hand_on_uneven_batches(
                iterator,
                lambda data: data[0].shape[0] == 4,
                lambda data: keras.tree.map_structure(lambda leaf: np.asarray(leaf) * 10, data),
            )

        model.__dict__.update(keras_internals.before_build(model, hand_on))
        model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        assert [leaf.shape for leaf in given] == [(4, 2), (2, 2)]
        assert given[0].sharding.spec[0] == "batch"
        np.testing.assert_array_equal(given[1], X[:2] * 10)
        other = Looks([keras.Input((2,)), keras.layers.Dense(1)])
        other.compile("sgd", "mse", jit_compile=False)
        other.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        np.testing.assert_array_equal(given[3], X[:2])  # of no other model
    finally:
        keras.distribution.set_distribution(None)


def test_state_in_variables_lends_the_values_that_fit_has_taken_out():
    model, seen = model_of(), []
    before = model.get_weights()

    def train(state, iterator):
        next(iterator)
        assert not any(arrays.has_value(v) for v in model.trainable_variables)
        with keras_internals.state_in_variables(model, state):
            seen.append(model.get_weights())
        assert not any(arrays.has_value(v) for v in model.trainable_variables)
        return {"loss": 0.0}, state

    model.make_train_function = lambda force=False: setattr(model, "train_function", train)
    model.fit(X, Y, batch_size=6, verbose=0)
    for each in (*seen, model.get_weights()):
        for old, new in zip(before, each, strict=True):
            np.testing.assert_array_equal(new, old)
    assert len(seen) == 1
