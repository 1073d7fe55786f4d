"""Print how near the plan of micro-batch size and segments comes to the best of all.

    KERAS_BACKEND=jax python -m benchmarks.plan [--width 512] [--tokens 1] [--batch 256] [--repeat]

Memory and time of a stack of layers are measured for each size with each of several segments. Then
the search plans for 20 random limits, and is told these numbers in place of its own measurements.
With --repeat it plans for `rematerialize=True`, of the sizes and segments that run layers again.
Times are CPU seconds of the process, medians of rounds in which all take their turn. Memory is what
XLA needs for a step on JAX; elsewhere it is what a process of its own has in use at most, less what
it has in use before the batch.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time

import keras
import numpy as np
from keras import layers

import tensorflow_ranger as ranger
from tensorflow_ranger.backend import arrays, steps
from tensorflow_ranger.batch_size.search import Search
from tensorflow_ranger.batch_size.segment_search import SegmentSearch

DEPTH, LIMITS = 16, 20
LEAST = 2 * 10**6  # bytes of the smallest limit: below, what a process holds is noise
BACKEND = keras.config.backend()


class Trained:
    """A model that trains in micro-batches of any size, with any segments run again."""

    def __init__(self, options):
        keras.utils.set_random_seed(0)
        inputs = x = keras.Input((options.tokens, options.width))
        for _ in range(DEPTH):
            x = layers.Dense(options.width, activation="gelu")(x)
        self.model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
        self.model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
        shape = (options.batch, options.tokens, options.width)
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        self.data = x, x[:, 0, :1], None
        ranger.microbatch(self.model, 1)
        self.model._symbolic_build(data_batch=(x[:1], x[:1, 0, :1]))
        self.model.make_train_function()
        self._train = self.model.make_train_function.__self__
        choices = self._train._choices(self._state, self.data)
        places = np.linspace(0, len(choices) - 1, options.choices).round().astype(int)
        self.choices = [choices[place] for place in dict.fromkeys(places)]

    @property
    def _state(self):
        return self.model._get_jax_state(True, True, True, True) if BACKEND == "jax" else None

    def memory(self, size, segments):
        """Return the bytes that a step needs beside the model, in this process."""
        if steps.KNOWS_MEMORY:
            _, step = self._train._step_for(self.data, segments)
            return step.memory(self._state, self.data, size)
        self.seconds(size, segments)
        arrays.reset_peak_memory()
        before = arrays.peak_memory()
        self.seconds(size, segments)
        return arrays.peak_memory() - before

    def seconds(self, size, segments):
        """Return the CPU seconds per sample of an update."""
        self._train._sizes.size, self._train._sizes.segments = size, segments
        start = time.process_time()
        self.model.train_on_batch(*self.data[:2])
        return (time.process_time() - start) / len(self.data[0])


def measured_memory():
    """Return the bytes that `main` prints for each size and segments, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan", *sys.argv[1:], "--memory"]
    # Freed memory is given back at once: what counts is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


def planned(grid, batch, choices, limit, repeats):
    """Return the `SegmentSearch` that plans for `limit`, told the numbers of `grid`.

    Also return the number of batches that the search for sizes took, and both together.
    """
    first = choices[-1 if repeats else 0]

    def bytes_of(size, segments=first):
        return grid[size, segments][0]

    memory_of = bytes_of if steps.KNOWS_MEMORY else None
    search = Search(batch, limit, memory_of, 0)
    of_sizes = tell(search, grid, lambda: first)
    goes_on = SegmentSearch(search, repeats)
    if not goes_on.done:
        goes_on.open(choices, memory_of)
    of_segments = tell(goes_on, grid, lambda: goes_on.segments or first)
    return goes_on, of_sizes, of_sizes + of_segments


def tell(search, grid, segments):
    """Answer `search` from `grid` until it ends; return the number of batches."""
    batches = 0
    while not search.done:
        memory, seconds = grid[search.size, segments()]
        search.record(search.size, seconds * search.batch, None if steps.KNOWS_MEMORY else memory)
        batches += 1
    return batches


def main():
    """Measure and print the grid of the active backend, and what is planned for random limits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan")
    parser.add_argument("--width", type=int, default=512, help="of the layers (default: 512)")
    parser.add_argument("--tokens", type=int, default=1, help="of a sample (default: 1)")
    parser.add_argument("--batch", type=int, default=256, help="samples (default: 256)")
    parser.add_argument("--choices", type=int, default=6, help="of segments (default: 6)")
    parser.add_argument("--repeat", action="store_true", help="plan for rematerialize=True")
    parser.add_argument("--rounds", type=int, default=7, help="per time (default: 7)")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    trained = Trained(options)
    batch, choices = options.batch, trained.choices
    sizes = [2**power for power in range(batch.bit_length())]
    cells = list(itertools.product(sizes, choices))
    if options.memory:
        print(*(trained.memory(*cell) for cell in cells))
        return
    memory = [trained.memory(*cell) for cell in cells] if steps.KNOWS_MEMORY else measured_memory()
    times = {cell: [] for cell in cells}
    for number in range(options.rounds + 1):
        for cell in cells:
            seconds = trained.seconds(*cell)
            times[cell] += [seconds] * (number > 0)
    grid = {
        cell: (needed, statistics.median(times[cell]))
        for cell, needed in zip(cells, memory, strict=True)
    }
    print(f"## {BACKEND} {arrays.version()}, Keras {keras.__version__}\n")
    head = "".join(f" {len(each.pairs)} segments: MB | us per sample |" for each in choices)
    print(f"| size |{head}\n| ---: |" + " ---: | ---: |" * len(choices))
    for size in sizes:
        row = [grid[size, segments] for segments in choices]
        print(f"| {size} |" + "".join(f" {m / 1e6:.1f} | {1e6 * s:.0f} |" for m, s in row))
    rng = np.random.default_rng(0)
    least = choices[-1 if options.repeat else 0]
    needed = [grid[size, least][0] for size in sizes]
    least_needed = min(needed) if steps.KNOWS_MEMORY else needed[0]
    most_needed = max(grid[size, choices[0]][0] for size in sizes)
    low, high = np.log(max(least_needed, min(LEAST, most_needed))), np.log(most_needed)
    candidates = choices[1:] if options.repeat else choices
    print("\n| limit, MB | planned | MB | predicted | time, of the grid's best | batches |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    ratios, counts = [], []
    for limit in sorted(np.exp(rng.uniform(low, high, LIMITS)).astype(int)):
        plan, *batches = planned(grid, batch, choices, limit, options.repeat)
        cell = plan.size, plan.segments or least
        best = min(
            seconds
            for (_, segments), (memory, seconds) in grid.items()
            if memory <= limit and segments in candidates
        )
        predicted = [
            each.predicted / each.memory
            for each in plan.plan().candidates
            if each.predicted is not None and each.memory is not None
        ]
        of_measured = ", ".join(f"{ratio:.2f}" for ratio in predicted)
        ratios.append(grid[cell][1] / best)
        counts.append(batches)
        print(
            f"| {limit / 1e6:.1f} | {cell[0]} x {len(cell[1].pairs)} | {grid[cell][0] / 1e6:.1f} | "
            f"{of_measured or '-'} | {ratios[-1]:.2f} | {batches[0]} + {batches[1] - batches[0]} |",
            flush=True,
        )
    of_sizes, both = map(statistics.mean, zip(*counts, strict=True))
    near = sum(ratio <= 1.05 for ratio in ratios)
    print(
        f"\n{near} of {LIMITS} within 5 % of the best, the others within {max(ratios) - 1:.0%}; "
        f"{of_sizes:.0f} batches for sizes, {both - of_sizes:.0f} for segments."
    )


if __name__ == "__main__":
    main()
