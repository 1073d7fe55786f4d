"""Print what an update of a large table costs: time and memory, beside plain `fit`.

    KERAS_BACKEND=tensorflow python -m benchmarks.embeddings [--rounds 7] [--rows 1000000]

A batch of 4,096 samples looks up 16 rows each, and runs in micro-batches of 256. Both ways to train
take turns; the ratio is the median of the ratios within a round. Memory is the peak of a process
that trains in one way alone, once its model is built.
"""

import argparse
import statistics
import subprocess
import sys
import time

import keras
import numpy as np

import tensorflow_ranger as ranger
from tensorflow_ranger.backend import process_memory

BATCH, SIZE, WORDS, UNITS = 4096, 256, 16, 64
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "adam": lambda: keras.optimizers.Adam(0.001),
    "adagrad": lambda: keras.optimizers.Adagrad(0.01),
}


def trainer(optimizer, rows, size):
    """Return a function that makes one update, in micro-batches unless `size` is None."""
    keras.utils.set_random_seed(0)
    words = keras.Input((WORDS,), dtype="int32")
    mean = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(rows, UNITS)(words))
    model = keras.Model(words, keras.layers.Dense(1)(mean))
    model.compile(OPTIMIZERS[optimizer](), "mse", jit_compile=keras.config.backend() == "jax")
    if size is not None:
        ranger.microbatch(model, size)
    rng = np.random.default_rng(0)
    x = rng.integers(0, rows, (BATCH, WORDS)).astype("int32")
    y = rng.normal(size=(BATCH, 1)).astype("float32")
    return lambda: model.fit(x, y, batch_size=BATCH, verbose=0)


def peak(optimizer, rows, size):
    """Return the MiB that a process which trains in one way has in use at most."""
    command = [sys.executable, "-m", "benchmarks.embeddings", "--rows", str(rows)]
    command += ["--one", optimizer, str(size or 0)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    """Print a line for each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        update = trainer(options.one[0], options.rows, int(options.one[1]) or None)
        for _ in range(3):
            update()
        process_memory.reset_peak_memory()
        for _ in range(3):
            update()
        print((process_memory.peak_memory() or 0) / 2**20)
        return
    print(f"{keras.config.backend()}: {options.rows:,} x {UNITS}")
    for optimizer in OPTIMIZERS:
        updates = [trainer(optimizer, options.rows, size) for size in (None, SIZE)]
        rounds = []
        for _ in range(2 + options.rounds):
            rounds.append([])
            for update in updates:
                begun = time.perf_counter()
                update()
                rounds[-1].append(time.perf_counter() - begun)
        ratio = statistics.median(ours / plain for plain, ours in rounds[2:])
        plain = statistics.median(each[0] for each in rounds[2:])
        memory = [peak(optimizer, options.rows, size) for size in (None, SIZE)]
        print(
            f"{optimizer:<8} plain {1e3 * plain:7.1f} ms an update, micro-batches {ratio:.2f}; "
            f"peak {memory[0]:.0f} MiB, micro-batches {memory[1] / memory[0]:.2f}"
        )


if __name__ == "__main__":
    main()
