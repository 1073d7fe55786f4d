"""What every engine must train to the same weights as one process on the whole batch.

A case is a model, an optimizer, data and the micro-batches it trains in. `run` trains it on the
part of each batch that a process is given and returns what the tests compare.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import tensorflow_ranger as ranger

BATCH = 32
LAST = 20  # samples of each epoch's last batch
SAMPLES = 4 * BATCH + LAST
EPOCHS = 4  # 20 updates


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to train.

    Attributes:
        optimizer: Function that returns the optimizer.
        model: Function that returns the model.
        size: Samples of a micro-batch on each replica, or None for Keras' own train step.
        masked: Whether the targets are sequences of words, masked and weighted.
    """

    optimizer: Callable
    model: Callable
    size: int | None = 3
    masked: bool = False


def classifier(*layers):
    """Return a network of `layers` over 6 numbers."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2"),
            *layers,
            keras.layers.Dense(3),
        ]
    )


def tagger():
    """Return a network that tags the words of sentences of up to 5."""
    keras.utils.set_random_seed(1)
    words = keras.Input((5,))
    vectors = keras.layers.Embedding(12, 8, mask_zero=True)(words)
    hidden = keras.layers.SimpleRNN(8, return_sequences=True)(vectors)
    return keras.Model(words, keras.layers.Dense(3)(hidden))


def sgd():
    """Return SGD that clips, which only the sum over all replicas does rightly."""
    return keras.optimizers.SGD(0.2, momentum=0.9, global_clipnorm=0.3)


CASES = {
    "masks": Case(sgd, tagger, masked=True),
    "batch_normalization": Case(sgd, lambda: classifier(keras.layers.BatchNormalization())),
    "ranger": Case(lambda: ranger.Ranger(0.02), classifier),
    "windows": Case(
        lambda: ranger.RangerOptimizer(inner=sgd(), accumulation_steps=2, lookahead=ranger.Lookahead(k=2)),
        classifier,
    ),
    "streaming": Case(
        lambda: ranger.RangerOptimizer(inner=sgd(), accumulation_steps=2), classifier, size=None
    ),
}


def data(case, samples=SAMPLES):
    """Return ``(x, y, sample_weight)``."""
    rng = np.random.default_rng(0)
    if not case.masked:
        x = rng.normal(size=(samples, 6)).astype("float32")
        return x, rng.integers(0, 3, samples), rng.uniform(0.5, 1.5, samples).astype("float32")
    x = rng.integers(1, 12, (samples, 5))
    # Sentences grow along each batch, so the masses of its parts differ.
    x[np.arange(5) > np.arange(samples)[:, None] % BATCH // 7] = 0
    return x, x % 3, rng.uniform(0.5, 1.5, (samples, 5)).astype("float32")


class Parts(keras.utils.PyDataset):
    """The rows of each batch that one of several processes trains on."""

    def __init__(self, arrays, process, processes, batch=BATCH):
        super().__init__()
        self._arrays, self._batch = arrays, batch
        self._process, self._processes = process, processes

    def __len__(self):
        return -(-len(self._arrays[0]) // self._batch)

    def __getitem__(self, index):
        rows = slice(index * self._batch, (index + 1) * self._batch)
        return tuple(np.array_split(a[rows], self._processes)[self._process] for a in self._arrays)


def run(case, process=0, processes=1, scope=contextlib.nullcontext, size=None, epochs=EPOCHS):
    """Train the case; return its weights, its history and its updates.

    Args:
        case: `Case`.
        process: Number of this process, whose part of each batch is trained on.
        processes: How many processes feed a part of their own.
        scope: Function that returns the context in which the model is built.
        size: Samples of a micro-batch, or None for the case's.
        epochs: Epochs.
    """
    with scope():
        model = case.model()
        model.compile(
            case.optimizer(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        if case.size:
            ranger.microbatch(model, size or case.size)
    arrays = data(case)
    if processes > 1:
        fed = (Parts(arrays, process, processes),)
        settings = {}
    else:
        fed, settings = arrays[:2], {"sample_weight": arrays[2], "batch_size": BATCH}
    held_out = tuple(array[:BATCH] for array in arrays)
    history = model.fit(
        *fed, **settings, shuffle=False, epochs=epochs, verbose=0, validation_data=held_out,
        validation_batch_size=BATCH,
    )
    return {
        "weights": [w.tolist() for w in model.get_weights()],
        "history": history.history,
        "updates": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
    }, model
