"""Print what computing the logits in chunks saves and costs: a language model's head.

    KERAS_BACKEND=jax python -m benchmarks.head [--rounds 5] [--words 50000] [--samples 16]

The model is an embedding, a gated layer and the head, so that nearly all is the head. Every row
trains on the same batch as one micro-batch. `memory_and_time` says what is measured.
"""

import argparse

import keras
import numpy as np
from keras import layers

import tensorflow_ranger as ranger
from benchmarks import memory_and_time

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


def main():
    """Measure and print the table of the active backend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head")
    parser.add_argument("--rounds", type=int, default=5, help="per row (default: 5)")
    parser.add_argument("--words", type=int, default=50_000, help="of the head (default: 50000)")
    parser.add_argument("--samples", type=int, default=16, help="of a batch (default: 16)")
    parser.add_argument("--peak", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    x, y = data(options)
    if options.peak:
        model = network(options, ROWS[options.peak])
        print(memory_and_time.peak(model, x, y, options.samples))
        return
    sizes = "--words", options.words, "--samples", options.samples
    memory = {
        name: memory_and_time.printed_by("benchmarks.head", *sizes, "--peak", name) for name in ROWS
    }
    models = {name: network(options, chunks) for name, chunks in ROWS.items()}
    title = f"{options.words} words, {options.samples * LENGTH} tokens of {WIDTH} numbers."
    memory_and_time.print_table(models, memory, x, y, options.rounds, title)
    print(f"\n{models['by itself'].microbatch_plan.head}", flush=True)


if __name__ == "__main__":
    main()
