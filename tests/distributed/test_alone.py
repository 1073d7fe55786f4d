"""Replicas that were asked for and are not there are an error, not as many models."""

import json

import keras
import pytest

import tensorflow_ranger as ranger
from tests.models import data, fit, network

WORKERS = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"index": 0}}
ASKED = {
    "tensorflow": ("TF_CONFIG", json.dumps(WORKERS), "TF_CONFIG names 2 workers"),
    "jax": ("KERAS_DISTRIBUTION_NUM_PROCESSES", "2", "KERAS_DISTRIBUTION_NUM_PROCESSES is 2"),
    "torch": ("WORLD_SIZE", "2", "torch.distributed has no process group"),
}[keras.config.backend()]


@pytest.fixture
def asked(monkeypatch):
    name, value, message = ASKED
    monkeypatch.setenv(name, value)
    return message


def test_ranger_optimizer_refuses_a_process_that_should_not_be_alone(asked):
    model = network(ranger.RangerOptimizer())
    with pytest.raises(RuntimeError, match=asked):
        fit(model, *data(), batch_size=8)


def test_microbatch_refuses_a_process_that_should_not_be_alone(asked):
    model = ranger.microbatch(network("adam"), 4)
    with pytest.raises(RuntimeError, match=asked):
        fit(model, *data(), batch_size=8)


if keras.config.backend() == "jax":

    @pytest.fixture
    def layouts():
        """A LayoutMap whose distribution is in force."""
        mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "model"])
        layouts = keras.distribution.LayoutMap(mesh)
        parallel = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        keras.distribution.set_distribution(parallel)
        yield layouts
        keras.distribution.set_distribution(None)

    def test_a_layout_map_that_matches_nothing_is_refused(layouts):
        layouts["dense/kernel"] = (None, "model")
        model = ranger.microbatch(network("adam"), 4)
        with pytest.raises(RuntimeError, match="LayoutMap matches no variable: got the patterns"):
            fit(model, *data(), batch_size=8)

    def test_a_layout_map_that_matches_is_taken(layouts):
        layouts[".*kernel"] = (None, "model")
        model = ranger.microbatch(network("adam"), 4)
        assert fit(model, *data(), batch_size=8).epoch == [0]
