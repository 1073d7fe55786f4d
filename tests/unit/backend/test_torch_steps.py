"""PyTorch's step: how long the sums of a batch's gradients live."""

import weakref

import keras
import numpy as np
import pytest
from keras import layers

from tensorflow_ranger import microbatch
from tensorflow_ranger.training.train_function import TrainFunction

if keras.config.backend() != "torch":
    pytest.skip("PyTorch's step", allow_module_level=True)

BATCH = 8


class Witness(layers.Layer):
    """Notes at each call how many sums of the last batch there are, and fails for many samples."""

    def __init__(self):
        super().__init__()
        self.sums = []
        self.seen = []
        self.most = None

    def call(self, inputs):
        self.seen.append(sum(reference() is not None for reference in self.sums))
        if self.most is not None and inputs.shape[0] > self.most:
            raise MemoryError(f"no memory for {inputs.shape[0]} samples")
        return inputs


def trained(size, **settings):
    """Return a model that has trained on one batch, and its witness, who knows the sums of it."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), Witness(), layers.Dense(1)])
    model.compile("adam", "mse", run_eagerly=True)
    train(microbatch(model, size, **settings))
    witness = model.layers[1]
    train_function = TrainFunction.of(model)
    assert train_function is not None
    ((_, step),) = train_function.maker.made.values()
    witness.sums = [weakref.ref(total) for total in step._last_sums]
    assert len(witness.sums) == len(model.trainable_variables)
    assert not any(total.requires_grad for total in step._last_sums)
    witness.seen.clear()
    return model, witness


def train(model):
    x = np.random.default_rng(0).normal(size=(BATCH, 6))
    model.train_on_batch(x, x[:, :1])


def test_the_last_sums_are_freed_after_the_first_forward_pass():
    model, witness = trained(size=4)
    train(model)
    assert witness.seen == [4, 0]


def test_a_pass_that_runs_again_has_their_memory():
    model, witness = trained(size=4)
    witness.most = 2
    train(model)
    assert witness.seen == [4, 0, 0, 0, 0]


def test_a_loss_of_the_whole_batch_has_their_memory_for_the_outputs():
    model, witness = trained(size=4, loss="whole")
    train(model)
    assert witness.seen == [0, 0, 0, 0]
