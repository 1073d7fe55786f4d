"""An order of micro-batches that depends on the seed and the epoch alone."""

import keras
import numpy as np
import pytest

from tensorflow_ranger_cli.runs.shuffled_batches import ShuffledBatches


def samples(count):
    x = np.arange(count, dtype="float32")[:, None]
    return x, 10 * x


def order(batches):
    return np.concatenate([batches[index][0][:, 0] for index in range(len(batches))])


def test_every_sample_comes_once_with_its_target():
    batches = ShuffledBatches(*samples(10), batch_size=4, seed=0)
    assert len(batches) == 3
    assert [len(batches[index][0]) for index in range(3)] == [4, 4, 2]
    assert sorted(order(batches)) == list(range(10))
    for index in range(3):
        x, y = batches[index]
        np.testing.assert_array_equal(y, 10 * x)


def test_the_order_depends_on_seed_and_epoch_alone():
    def after(seed, *epochs):
        batches = ShuffledBatches(*samples(100), batch_size=8, seed=seed)
        for epoch in epochs:
            batches.set_epoch(epoch)
        return order(batches).tolist()

    assert after(0, 5) == after(0, 1, 2, 5) == after(0, 5)
    assert after(0) == after(0, 0)
    orders = [after(0, 0), after(0, 1), after(1, 0), after(1, 1), list(range(100))]
    assert len({tuple(o) for o in orders}) == 5


def test_fit_takes_each_epoch_in_its_order():
    seen = []

    class Spy(ShuffledBatches):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            seen.append(x[:, 0].tolist())
            return x, y

    batches = Spy(*samples(6), batch_size=2, seed=3)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), loss="mse")
    callbacks = [batches.order_callback()]
    model.fit(batches, shuffle=False, initial_epoch=2, epochs=5, callbacks=callbacks, verbose=0)
    expected = []
    for epoch in (2, 3, 4):
        twin = ShuffledBatches(*samples(6), batch_size=2, seed=3)
        twin.set_epoch(epoch)
        expected += [twin[index][0][:, 0].tolist() for index in range(3)]
    # Keras may look at some micro-batches before the first epoch, to learn their shapes.
    assert seen[-9:] == expected


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="the same length: got 3 and 2"):
        ShuffledBatches(np.ones(3), np.ones(2), batch_size=1, seed=0)


def test_an_empty_micro_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1: got 0"):
        ShuffledBatches(np.ones(3), np.ones(3), batch_size=0, seed=0)
