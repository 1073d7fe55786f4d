"""Trains one wide layer; run by `test_out_of_memory.py` in a process of its own.

    python -m tests.faults.out_of_memory BYTES buffer|fold [deep|words [SIZE]]

begins with micro-batches of SIZE samples, or with the whole batch, allows BYTES of address
space more than the process has when training begins, or any amount for 0, and prints the size
in use, the bytes of address space that training took, the history and the weights as one line
of JSON. With "deep" it trains many layers instead, of which one sample takes most of the
memory; with "words" such layers and a last one whose outputs take most of it.
"""

import json
import resource
import sys
from pathlib import Path

import keras
import numpy as np

import tensorflow_ranger as ranger

BATCH = 32768
WIDTH = 4096
DEPTH, LENGTH = 16, 1_250_000
WORDS = 64

# By where the sum is held. Adam would turn a rounding of a gradient near zero into a whole step.
OPTIMIZERS = {
    "buffer": lambda: keras.optimizers.SGD(0.01),
    "fold": lambda: keras.optimizers.SGD(0.01, momentum=0.5),
}


def wide(optimizer):
    """Return a compiled wide layer, and its batch."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(WIDTH, activation="tanh"),
            keras.layers.Dropout(0.0),
            keras.layers.BatchNormalization(trainable=False),
            keras.layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 8)).astype("float32")
    model.compile(optimizer, loss="mse", metrics=["mae"])
    return model, x, rng.normal(size=(BATCH, 1)).astype("float32")


def deep(optimizer):
    """Return compiled layers that make 40 MB of a sample each, and a batch of two.

    That is more than an allocator keeps for later.
    """
    last = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((None, 8)), *_layers(), *last])
    model.compile(optimizer, loss="mse", metrics=["mae"])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, LENGTH, 8)).astype("float32")
    return model, x, rng.normal(size=(2, 1)).astype("float32")


def words(optimizer):
    """Return such layers of a quarter, with logits of 80 MB, and a batch of two.

    That is half of what the layers keep, and the loss needs the logits several times.
    """
    model = keras.Sequential([keras.Input((None, 8)), *_layers(), keras.layers.Dense(WORDS)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, LENGTH // 4, 8)).astype("float32")
    return model, x, rng.integers(0, WORDS, (2, LENGTH // 4))


def _layers():
    return [keras.layers.Dense(8, activation="tanh") for _ in range(DEPTH)]


def trained(spare, optimizer, kind="wide", size=None):
    """Return what the process prints."""
    make, warm_up = {"wide": (wide, None), "deep": (deep, 64), "words": (words, 64)}[kind]
    keras.utils.set_random_seed(0)
    model, x, y = make(optimizer)
    ranger.microbatch(model, 64)
    # What a process needs to begin with.
    model.fit(x[:128, :warm_up], y[:128, :warm_up], batch_size=128, verbose=0)
    ranger.microbatch(model, int(size or len(x)))
    begun = address_space("VmSize")
    if spare:
        limit = begun + spare
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    history = model.fit(x, y, batch_size=len(x), epochs=2, verbose=0, shuffle=False).history
    weights = [weight.ravel()[:64].tolist() for weight in model.get_weights()]
    return {
        "size": model.microbatch_plan.chosen,
        "repeats": model.microbatch_plan.rematerialization,
        "head": model.microbatch_plan.head,
        "bytes": address_space("VmPeak") - begun,
        "history": history,
        "weights": weights,
    }


def address_space(name):
    """Return the bytes of address space in use (VmSize), or the most there were (VmPeak)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(trained(int(sys.argv[1]), OPTIMIZERS[sys.argv[2]](), *sys.argv[3:])))
