"""Print what trimmed micro-batches save: time of an update, beside plain `fit` on padded batches.

    KERAS_BACKEND=jax python -m benchmarks.padding [--rounds 7] [--networks recurrent]
        [--batch 256] [--size 64]

Networks read 48 words of short texts, of which 20 are real on average. Each round runs one epoch of
each way to train, in turn: plain `fit`, micro-batches of 64, and micro-batches of 64 trimmed to
their longest text. Ratios are medians of the ratios within a round. The first epoch, which
compiles, is not counted. On a busy machine look at the ratios of CPU time.
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

TEXTS = 2048  # of an epoch


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


def shares(rounds):
    """Return the medians of what the second and the third number of a round are of the first."""
    return [statistics.median(each[way] / each[0] for each in rounds) for way in (1, 2)]


def main():
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=NETWORKS)
    options = parser.parse_args()
    (x, y), _ = reviews.load()
    x, y = x[:TEXTS], y[:TEXTS]
    batch, size = options.batch, options.size
    print(f"{keras.config.backend()}: batches of {batch}, micro-batches of {size}")
    for network in (NETWORKS[name] for name in options.networks):
        models = [model_of(network, *way) for way in ((None, None), (size, None), (size, 0))]
        times, cpu_times = [], []
        for _ in range(1 + options.rounds):
            times.append([])
            cpu_times.append([])
            for model in models:
                begun, cpu_begun = time.perf_counter(), time.process_time()
                model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
                times[-1].append(time.perf_counter() - begun)
                cpu_times[-1].append(time.process_time() - cpu_begun)
        whole = statistics.median(each[0] for each in times[1:]) * batch / TEXTS
        (micro, trimmed), (micro_cpu, trimmed_cpu) = map(shares, (times[1:], cpu_times[1:]))
        apart = max(
            np.max(np.abs(a - b))
            for a, b in zip(models[0].get_weights(), models[2].get_weights(), strict=True)
        )
        print(
            f"{network.__name__:<14} plain {1e3 * whole:6.1f} ms an update, micro-batches "
            f"{micro:.2f}, trimmed {trimmed:.2f}; in CPU time {micro_cpu:.2f}, {trimmed_cpu:.2f}; "
            f"weights {apart:.0e} apart"
        )


if __name__ == "__main__":
    main()
