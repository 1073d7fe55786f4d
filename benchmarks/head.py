"""Print what computing the logits in chunks saves and costs: a language model's head.

    KERAS_BACKEND=jax python -m benchmarks.head [--rounds 5] [--words 50000] [--samples 16]

The model is an embedding, a gated layer and the head, so that nearly all is the head. Every row
trains on the same batch as one micro-batch, in turn with the others. Times are CPU
seconds of the process; ratios are medians of the ratios within a round. Memory is what XLA
allocates for a step on JAX; elsewhere each row runs in a process of its own, and its memory is what
that process has in use at most, less what it has in use before the batch.
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

LENGTH, WIDTH = 256, 256
ROWS = {"whole": 1, "by itself": None, "8 chunks": 8}


def network(options, chunks):
    """Return a compiled model whose logits are computed in `chunks`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(1000, WIDTH)(inputs)
    x = layers.LayerNormalization()(layers.Dense(WIDTH, activation="gelu")(x))
    model = keras.Model(inputs, layers.Dense(options.words)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    is_compiled = keras.config.backend() == "jax"
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=is_compiled)
    return ranger.microbatch(model, options.samples, head_chunks=chunks)


def data(options):
    """Return a batch."""
    rng = np.random.default_rng(0)
    shape = options.samples, LENGTH
    return rng.integers(0, 1000, shape), rng.integers(0, options.words, shape)


def peak(options, name):
    """Return the bytes that training needs beside the model, in this process."""
    if keras.config.backend() == "jax":
        return temporaries(network(options, ROWS[name]), *data(options), options.samples)
    model, (x, y) = network(options, ROWS[name]), data(options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        model.train_on_batch(x, y)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def peak_of_process(options, name):
    """Return `peak` of a process of its own."""
    sizes = ["--words", str(options.words), "--samples", str(options.samples)]
    command = [sys.executable, "-m", "benchmarks.head", *sizes, "--peak", name]
    # Freed memory is given back at once: what counts is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def seconds(model, x, y):
    """Return the CPU seconds of an update."""
    start = time.process_time()
    model.train_on_batch(x, y)
    return time.process_time() - start


def main():
    """Measure and print the table of the active backend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head")
    parser.add_argument("--rounds", type=int, default=5, help="per row (default: 5)")
    parser.add_argument("--words", type=int, default=50_000, help="of the head (default: 50000)")
    parser.add_argument("--samples", type=int, default=16, help="of a batch (default: 16)")
    parser.add_argument("--peak", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options, options.peak))
        return
    memory = {name: peak_of_process(options, name) for name in ROWS}
    models = {name: network(options, chunks) for name, chunks in ROWS.items()}
    x, y = data(options)
    for model in models.values():
        model.train_on_batch(x, y)
    times = {name: [] for name in ROWS}
    for _ in range(options.rounds):
        for name, model in models.items():
            times[name].append(seconds(model, x, y))
    print(
        f"## {keras.config.backend()} {arrays.version()}, Keras {keras.__version__}\n\n"
        f"{options.words} words, {options.samples * LENGTH} tokens of {WIDTH} numbers.\n\n"
        "| | memory, MB | of whole | CPU s an update | of whole |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for name in ROWS:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["whole"], strict=True))
        share = memory[name] / memory["whole"]
        median = statistics.median(times[name])
        print(f"| {name} | {memory[name] / 1e6:.0f} | {share:.2f} | {median:.2f} | {ratio:.2f} |")
    print(f"\n{models['by itself'].microbatch_plan.head}", flush=True)


if __name__ == "__main__":
    main()
