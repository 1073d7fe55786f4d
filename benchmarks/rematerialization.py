"""Print what running layers again in the backward pass saves and costs: deep networks.

    KERAS_BACKEND=jax python -m benchmarks.rematerialization [--rounds 5] [--blocks 24]
        [--network residual]

Every row trains on the same batch in micro-batches of the same size. `memory_and_time` says what is
measured.
"""

import argparse

import keras
import numpy as np
from keras import layers

import tensorflow_ranger as ranger
from benchmarks import memory_and_time

BATCH, SIZE, LENGTH, WIDTH = 16, 8, 128, 64
IMAGE, CHANNELS = 24, 64
ROWS = {"kept": False, "4 segments": 4, "least memory": True}


def transformer(x):
    """Return a pre-norm transformer block of `x`, with dropout."""
    y = layers.LayerNormalization()(x)
    x = x + layers.Dropout(0.1)(layers.MultiHeadAttention(4, WIDTH // 4, dropout=0.1)(y, y))
    y = layers.Dense(4 * WIDTH, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dropout(0.1)(layers.Dense(WIDTH)(y))


def residual(x):
    """Return a residual block of the images `x`: normalization, and one convolution."""
    y = layers.ReLU()(layers.BatchNormalization()(x))
    return x + layers.Conv2D(CHANNELS, 3, padding="same")(y)


NETWORKS = {
    "transformer": (transformer, (LENGTH, WIDTH)),
    "residual": (residual, (IMAGE, IMAGE, CHANNELS)),
}


def network(name, blocks, rematerialize):
    """Return a compiled model that trains with `rematerialize`."""
    keras.utils.set_random_seed(0)
    block, shape = NETWORKS[name]
    inputs = x = keras.Input(shape)
    for _ in range(blocks):
        x = block(x)
    pooled = keras.ops.mean(x, axis=list(range(1, len(shape))))
    model = keras.Model(inputs, layers.Dense(1)(pooled))
    model.compile("sgd", "mse", jit_compile=keras.config.backend() == "jax")
    return ranger.microbatch(model, SIZE, rematerialize=rematerialize)


def data(name):
    """Return a batch for the network of this name."""
    _, shape = NETWORKS[name]
    x = np.random.default_rng(0).normal(size=(BATCH, *shape)).astype("float32")
    return x, x.reshape(BATCH, -1)[:, :1]


def main():
    """Measure and print the table of the active backend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rematerialization")
    parser.add_argument("--rounds", type=int, default=5, help="per row (default: 5)")
    parser.add_argument("--blocks", type=int, default=24, help="of the network (default: 24)")
    parser.add_argument("--network", choices=NETWORKS, default="transformer")
    parser.add_argument("--peak", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    of, blocks = options.network, options.blocks
    x, y = data(of)
    if options.peak:
        print(memory_and_time.peak(network(of, blocks, ROWS[options.peak]), x, y, SIZE))
        return
    arguments = "benchmarks.rematerialization", "--blocks", blocks, "--network", of, "--peak"
    memory = {name: memory_and_time.printed_by(*arguments, name) for name in ROWS}
    models = {name: network(of, blocks, value) for name, value in ROWS.items()}
    title = f"{blocks} {of} blocks, {BATCH} samples in micro-batches of {SIZE}."
    memory_and_time.print_table(models, memory, x, y, options.rounds, title)
    print(f"\n{models['least memory'].microbatch_plan.rematerialization}", flush=True)


if __name__ == "__main__":
    main()
