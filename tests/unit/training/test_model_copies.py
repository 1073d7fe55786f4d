"""Copies of a model train as the model does, or a warning says that they do not."""

import copy
import pickle

import keras
import numpy as np
import pytest
from keras import layers

import tensorflow_ranger as ranger
from tests.models import assert_same_weights, data, fit, network


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_trains_in_micro_batches(copied):
    model = ranger.microbatch(network("adam"), 5)
    fit(model, *data(), 12)
    other = copied(model)
    assert other.microbatch_plan.chosen == 5
    assert model.microbatch_plan is not other.microbatch_plan
    for each in (model, other):
        fit(each, *data(), 12)
    assert_same_weights(other, model)
    ranger.microbatch(other, None)
    assert not hasattr(copied(other), "microbatch_plan")


def test_a_copy_combines_the_same_tasks():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, {name: layers.Dense(2, name=name)(inputs) for name in ("a", "b")})
    model.compile("sgd", {"a": "mse", "b": "mae"})
    x, y = data(12)
    ranger.multitask(ranger.microbatch(model, 5), "pcgrad")
    other = copy.deepcopy(model)
    for each in (model, other):
        fit(each, x, {"a": y, "b": y}, 12)
    assert_same_weights(other, model)


def test_a_clone_trains_on_whole_batches_and_that_is_told():
    model = ranger.microbatch(network("sgd"), 5)
    with pytest.warns(UserWarning, match=r"clone.*trains on whole batches.*on the clone"):
        clone = keras.models.clone_model(model)
    assert not hasattr(clone, "microbatch_plan")
    ranger.microbatch(model, None)
    keras.models.clone_model(model)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_saving_tells_nothing(tmp_path, name):
    model = ranger.microbatch(network(keras.optimizers.SGD(0.1)), 5)
    fit(model, *data(), 12)
    model.save(tmp_path / name)
    loaded = keras.saving.load_model(tmp_path / name, compile=False)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
