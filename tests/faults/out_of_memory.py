"""Trains one wide layer; run by `test_out_of_memory.py` in a process of its own.

    python -m tests.faults.out_of_memory BYTES buffer|fold [deep]

allows BYTES of address space more than the process has when training begins, or any amount for 0,
and prints the size in use, the bytes of address space that training took, the history and the
weights as one line of JSON. With "deep" it trains many layers instead, of which one sample takes
most of the memory.
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

# By where the sum is held. Adam would turn a rounding of a gradient near zero into a whole step.
OPTIMIZERS = {
    "buffer": lambda: keras.optimizers.SGD(0.01),
    "fold": lambda: keras.optimizers.SGD(0.01, momentum=0.5),
}


def wide():
    """Return a wide layer, and its batch."""
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
    return model, x, rng.normal(size=(BATCH, 1)).astype("float32")


def deep():
    """Return layers that make 40 MB of a sample each, and a batch of two.

    That is more than an allocator keeps for later.
    """
    layers = [keras.layers.Dense(8, activation="tanh") for _ in range(DEPTH)]
    last = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((None, 8)), *layers, *last])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, LENGTH, 8)).astype("float32")
    return model, x, rng.normal(size=(2, 1)).astype("float32")


def trained(spare, optimizer, make, warm_up):
    """Return what `main` prints."""
    keras.utils.set_random_seed(0)
    model, x, y = make()
    model.compile(optimizer, loss="mse", metrics=["mae"])
    ranger.microbatch(model, 64)
    # What a process needs to begin with.
    model.fit(x[:128, :warm_up], y[:128], batch_size=128, verbose=0)
    ranger.microbatch(model, len(x))
    begun = address_space("VmSize")
    if spare:
        limit = begun + spare
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    history = model.fit(x, y, batch_size=len(x), epochs=2, verbose=0, shuffle=False).history
    weights = [weight.ravel()[:64].tolist() for weight in model.get_weights()]
    return {
        "size": model.microbatch_plan.chosen,
        "repeats": model.microbatch_plan.rematerialization,
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
    arguments = (deep, 64) if "deep" in sys.argv else (wide, None)
    print(json.dumps(trained(int(sys.argv[1]), OPTIMIZERS[sys.argv[2]](), *arguments)))
