"""Draw memory and time of a training step against the size of its micro-batches.

KERAS_BACKEND=jax python -m benchmarks.picture docs/micro_batch_size.svg
"""

import argparse
import statistics

import keras
import matplotlib as mpl

from benchmarks.fused import BATCHES, Row
from benchmarks.problems import BATCH

mpl.use("svg")
from matplotlib import pyplot as plt

ROUNDS = 7


def measure(problem):
    """Return sizes, the bytes of the step and the CPU seconds of a sample."""
    sizes = [2**power for power in range(BATCH.bit_length())]
    rows = [Row(problem, BATCH, size, jit_compile=True) for size in sizes]
    seconds = [[] for _ in rows]
    for _ in range(ROUNDS):
        for row, times in zip(rows, seconds, strict=True):
            times.append(row.run() / BATCH / BATCHES)
    memory = [needed(row, size) for row, size in zip(rows, sizes, strict=True)]
    return sizes, memory, [statistics.median(times) for times in seconds]


def needed(row, size):
    """Return the bytes XLA says that the row's step needs."""
    data = (*row.batches[0], None)
    _, step = row.model.make_train_function.__self__._step_for(data)
    return step.memory(row.state, data, size)


def draw(path, sizes, memory, seconds):
    """Write the picture as SVG."""
    figure, left = plt.subplots(figsize=(7, 3.5), layout="constrained")
    left.plot(sizes, [value / 1e6 for value in memory], "o-", color="tab:blue")
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.set_xlabel(f"samples in a micro-batch (batch of {BATCH})")
    left.set_ylabel("memory of the step, MB", color="tab:blue")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(sizes, [1e6 * value for value in seconds], "s--", color="tab:orange")
    right.set_ylabel("CPU time per sample, µs", color="tab:orange")
    right.set_ylim(bottom=0)
    left.set_title(f"Founding CNN, Adam, {keras.config.backend()} on a CPU")
    figure.savefig(path, metadata={"Date": None})


def main():
    """Measure and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture")
    parser.add_argument("path")
    draw(parser.parse_args().path, *measure("CNN"))


if __name__ == "__main__":
    main()
