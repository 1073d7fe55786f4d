"""Print what running layers again in the backward pass saves and costs: a deep transformer.

    KERAS_BACKEND=jax python -m benchmarks.rematerialization [--rounds 5] [--blocks 24]

Every row trains on the same batch in micro-batches of the same size, in turn with the others. Times
are CPU seconds of the process; ratios are medians of the ratios within a round. Memory is what XLA
allocates for a step on JAX; elsewhere each row runs in a process of its own, and its memory is
what that process has in use at most, less what it has in use before the batch.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import keras
import numpy as np
from keras import layers

import tensorflow_ranger as ranger
from tensorflow_ranger.backend import arrays
from tests.models import temporaries

BATCH, SIZE, LENGTH, WIDTH = 16, 8, 128, 64
ROWS = {"kept": False, "4 segments": 4, "least memory": True}


def block(x):
    """Return a pre-norm transformer block of `x`, with dropout."""
    y = layers.LayerNormalization()(x)
    x = x + layers.Dropout(0.1)(layers.MultiHeadAttention(4, WIDTH // 4, dropout=0.1)(y, y))
    y = layers.Dense(4 * WIDTH, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dropout(0.1)(layers.Dense(WIDTH)(y))


def network(blocks, rematerialize):
    """Return a compiled model that trains with `rematerialize`."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((LENGTH, WIDTH))
    for _ in range(blocks):
        x = block(x)
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
    model.compile("sgd", "mse", jit_compile=keras.config.backend() == "jax")
    return ranger.microbatch(model, SIZE, rematerialize=rematerialize)


def data():
    """Return a batch."""
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype("float32")
    return x, x[:, 0, :1]


def peak(blocks, name):
    """Return the bytes that training needs beside the model, in this process."""
    model, (x, y) = network(blocks, ROWS[name]), data()
    if keras.config.backend() == "jax":
        return temporaries(model, x, y, SIZE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        model.train_on_batch(x, y)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def peak_of_process(blocks, name):
    """Return `peak` of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.rematerialization", "--blocks", str(blocks)]
    # Freed memory is given back at once: what counts is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [*command, "--peak", name], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def seconds(model, x, y):
    """Return the CPU seconds of an update."""
    start = time.process_time()
    model.train_on_batch(x, y)
    return time.process_time() - start


def main():
    """Measure and print the table of the active backend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rematerialization")
    parser.add_argument("--rounds", type=int, default=5, help="per row (default: 5)")
    parser.add_argument("--blocks", type=int, default=24, help="of the transformer (default: 24)")
    parser.add_argument("--peak", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.blocks, options.peak))
        return
    memory = {name: peak_of_process(options.blocks, name) for name in ROWS}
    models = {name: network(options.blocks, value) for name, value in ROWS.items()}
    x, y = data()
    for model in models.values():
        model.train_on_batch(x, y)
    times = {name: [] for name in ROWS}
    for _ in range(options.rounds):
        for name, model in models.items():
            times[name].append(seconds(model, x, y))
    print(
        f"## {keras.config.backend()} {arrays.version()}, Keras {keras.__version__}\n\n"
        f"{options.blocks} transformer blocks, {BATCH} samples in micro-batches of {SIZE}.\n\n"
        "| | memory, MB | of kept | CPU s an update | of kept |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for name in ROWS:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["kept"], strict=True))
        share = memory[name] / memory["kept"]
        median = statistics.median(times[name])
        print(f"| {name} | {memory[name] / 1e6:.0f} | {share:.2f} | {median:.2f} | {ratio:.2f} |")
    print(f"\n{models['least memory'].microbatch_plan.rematerialization}", flush=True)


if __name__ == "__main__":
    main()
