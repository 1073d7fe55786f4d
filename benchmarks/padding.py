"""Print what trimmed micro-batches save: time of an update, beside plain `fit` on padded batches.

    KERAS_BACKEND=jax python -m benchmarks.padding [--rounds 7] [--networks recurrent]

Networks read 48 words of short texts, of which 20 are real on average. Each round runs one epoch of
each way to train, in turn: plain `fit`, micro-batches of 64, and micro-batches of 64 trimmed to
their longest text. Ratios are medians of the ratios within a round. The first epoch, which
compiles, is not counted.
"""

import argparse
import statistics
import time

import keras
import numpy as np
from keras import layers

import tensorflow_ranger as ranger
from tensorflow_ranger_cli.tasks import reviews
from tensorflow_ranger_cli.tasks.data.reviews import BUCKETS, DOMAINS

BATCH, SIZE, BATCHES = 256, 64, 8


def _classifier(body):
    words = keras.Input((None,), dtype="int32")
    vectors = layers.Embedding(BUCKETS, 64, mask_zero=True)(words)
    return keras.Model(words, layers.Dense(len(DOMAINS), activation="softmax")(body(vectors)))


def mean_of_words():
    """Return a network like that of the task "reviews": the mean over the vectors of a text."""

    def body(x):
        mean = layers.GlobalAveragePooling1D()(layers.Dropout(0.3)(x))
        return layers.Dropout(0.3)(mean)

    return _classifier(body)


def recurrent():
    """Return a bidirectional LSTM."""
    return _classifier(layers.Bidirectional(layers.LSTM(64)))


def attention():
    """Return a block of a transformer, and the mean over its outputs."""

    def body(x):
        x = layers.Add()([x, layers.MultiHeadAttention(4, 16)(x, x)])
        x = layers.Add()([x, layers.Dense(64)(layers.Dense(256, activation="gelu")(x))])
        return layers.GlobalAveragePooling1D()(x)

    return _classifier(body)


NETWORKS = {each.__name__: each for each in (mean_of_words, recurrent, attention)}


def model_of(network, size, padding):
    """Return a compiled network that trains in micro-batches, or whole if `size` is None."""
    keras.utils.set_random_seed(0)
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    return model if size is None else ranger.microbatch(model, size, padding=padding)


def main():
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=NETWORKS)
    options = parser.parse_args()
    (x, y), _ = reviews.load()
    x, y = x[: BATCH * BATCHES], y[: BATCH * BATCHES]
    print(f"{keras.config.backend()}: batches of {BATCH}, micro-batches of {SIZE}")
    for network in (NETWORKS[name] for name in options.networks):
        models = [model_of(network, *way) for way in ((None, None), (SIZE, None), (SIZE, 0))]
        times = []
        for _ in range(1 + options.rounds):
            times.append([])
            for model in models:
                begun = time.perf_counter()
                model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
                times[-1].append(time.perf_counter() - begun)
        whole, *ours = zip(*times[1:], strict=True)
        micro, trimmed = (
            statistics.median(a / b for a, b in zip(each, whole, strict=True)) for each in ours
        )
        apart = max(
            np.max(np.abs(a - b))
            for a, b in zip(models[0].get_weights(), models[2].get_weights(), strict=True)
        )
        print(
            f"{network.__name__:<14} plain {1e3 * statistics.median(whole) / BATCHES:6.1f} ms an "
            f"update, micro-batches {micro:.2f}, trimmed {trimmed:.2f}; weights {apart:.0e} apart"
        )


if __name__ == "__main__":
    main()
