"""Smaller micro-batches where memory runs out, and larger ones again after a while."""

import keras
import numpy as np
import pytest
from keras import layers

from tensorflow_ranger import microbatch
from tensorflow_ranger.batch_size import size_policy
from tests.marks import first, first_but
from tests.models import assert_same_weights, data

BATCH = 16


class Hungry(layers.Layer):
    """Finds memory for so many samples and no more, as an allocator does."""

    def __init__(self):
        super().__init__()
        self.most = None
        self.error = MemoryError

    def call(self, inputs):
        if self.most is not None and inputs.shape[0] > self.most:
            raise self.error(f"no memory for {inputs.shape[0]} samples")
        return inputs


def hungry_model(optimizer=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), layers.Dropout(0.3), Hungry(), layers.Dense(2)]
    )
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True, jit_compile=False)
    train(model, 1)  # now it is built
    return model


def undisturbed(optimizer=None):
    """Return a model whose batches are whole; PyTorch has numbers of its own in micro-batches."""
    model = hungry_model(optimizer)
    return microbatch(model, BATCH) if keras.config.backend() == "torch" else model


def train(model, batches, batch_size=BATCH):
    x, y = data(batch_size * batches)
    settings = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    return model.fit(x, y, **settings).history


@pytest.mark.parametrize("optimizer", first_but(["sgd"], ["adam", "sgd"]))
def test_the_batch_is_run_again_in_halves(optimizer, caplog):
    model, expected = hungry_model(optimizer), undisturbed(optimizer)
    plain = train(expected, 3)
    caplog.clear()  # its batches are not split, which is told
    microbatch(model, BATCH)
    model.layers[2].most = 5
    history = train(model, 3)
    assert_same_weights(model, expected, 1e-5)
    for key, values in plain.items():
        np.testing.assert_allclose(history[key], values, rtol=1e-5)
    assert [record.getMessage() for record in caplog.records] == [
        "Out of memory with micro-batches of 16: the batch is run again with 8.",
        "Out of memory with micro-batches of 8: the batch is run again with 4.",
    ]
    plan = model.microbatch_plan
    assert plan.chosen == 4
    assert [c.size for c in plan.candidates if not c.fits] == [8, 16]


@first  # tests/unit/backend/test_out_of_memory.py looks at every text
@pytest.mark.parametrize("text", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_errors_of_the_libraries_below_are_recognised(text):
    model, expected = hungry_model(), undisturbed()
    microbatch(model, BATCH)
    model.layers[2].most = 4
    model.layers[2].error = lambda _: RuntimeError(text)
    train(model, 2)
    train(expected, 2)
    assert model.microbatch_plan.chosen == 4
    assert_same_weights(model, expected, 1e-5)


def test_errors_that_only_mention_memory_are_raised(caplog):
    model = microbatch(hungry_model(), BATCH)
    model.layers[2].most = 4
    model.layers[2].error = lambda _: RuntimeError("CUDA error: an illegal memory access")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(model, 1)
    assert not caplog.records


@pytest.mark.skipif(keras.config.backend() != "torch", reason="about PyTorch's cache")
def test_memory_that_pytorch_keeps_is_given_back_before_the_batch_is_run_again(monkeypatch):
    import torch

    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    model = microbatch(hungry_model(), BATCH)
    model.layers[2].most = 5
    train(model, 3)
    assert len(freed) == 2


@first
def test_one_sample_that_does_not_fit_is_an_error():
    model = microbatch(hungry_model(), 4)
    before = model.get_weights()
    model.layers[2].most = 0
    with pytest.raises(
        MemoryError, match=r"(?s)One sample at a time does not fit.*no memory for 1"
    ):
        train(model, 1)
    for weight, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, other)


@first  # tests/unit/batch_size/test_size_policy.py looks at when it grows
def test_it_grows_back_after_a_while(monkeypatch, caplog):
    monkeypatch.setattr(size_policy, "GROW_AFTER", 3)
    model = microbatch(hungry_model(), BATCH)
    model.layers[2].most = 4
    train(model, 1)
    assert model.microbatch_plan.chosen == 4
    model.layers[2].most = 8
    train(model, 6)  # 8 fits again; the next try, of 16, does not
    assert model.microbatch_plan.chosen == 8
    assert len(caplog.records) == 3
    train(model, 5)  # it waits for longer
    assert len(caplog.records) == 3
    model.layers[2].most = BATCH
    train(model, 2)
    assert model.microbatch_plan.chosen == BATCH
    assert len(caplog.records) == 3


@first
def test_a_search_takes_what_fits():
    model, expected = hungry_model(), undisturbed()
    microbatch(model, "auto")
    model.layers[2].most = 2
    train(model, 12, batch_size=6)
    train(expected, 12, batch_size=6)
    assert model.microbatch_plan.chosen in {1, 2}
    assert_same_weights(model, expected, 1e-5)
