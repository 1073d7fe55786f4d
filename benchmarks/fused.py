"""Print what a training step of `microbatch` costs beside its alternatives.

    KERAS_BACKEND=jax python -m benchmarks.fused [--rounds 15] [--problem CNN]

Every row trains on the same samples by calling the model's own train function, in turn with the
others, so that a change of the machine's speed touches them alike. Times are CPU seconds of the
process; ratios are medians of the ratios within a round.
"""

import argparse
import gc
import platform
import statistics
import time

import keras
import numpy as np

import tensorflow_ranger as ranger
from benchmarks.floor import make_floor
from benchmarks.problems import BATCH, PROBLEMS
from tensorflow_ranger.backend import arrays

SIZE = 32
BATCHES = 2  # per round
SEARCH = 60  # batches in which "auto" finds its size
OURS, AUTO, KERAS, WHOLE, FLOOR = (
    "microbatch(model, 32)",
    'microbatch(model, "auto")',
    "Keras gradient_accumulation_steps",
    "whole batch",
    "floor: gradients, sums, one update",
)


class Row:
    """A model that trains by its own train function."""

    def __init__(self, problem, batch, size=None, *, jit_compile, **optimizer):
        keras.utils.set_random_seed(0)
        self.model, x, y = PROBLEMS[problem]()
        self.model.compile(
            keras.optimizers.Adam(**optimizer),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
        if size is not None:
            ranger.microbatch(self.model, size)
        self.batches = cut(x, y, batch)
        self.model.train_on_batch(*self.batches[0])
        self.state = None
        if keras.config.backend() == "jax":
            self.state = self.model._get_jax_state(True, True, True, True)
        self.seconds = []

    def run(self, batches=BATCHES):
        """Train on `batches` times `BATCH` samples; return CPU seconds."""
        start, logs = time.process_time(), {}
        for _ in range(batches):
            for data in self.batches:
                logs = self._step((*data, None))
        arrays.wait(logs["loss"])
        return time.process_time() - start

    def _step(self, data):
        name = keras.config.backend()
        if name == "jax":
            logs, self.state = self.model.train_function(self.state, iter([data]))
            return logs
        return self.model.train_function([data] if name == "torch" else iter([data]))


class Floor:
    """The least a training step over micro-batches has to do."""

    def __init__(self, problem, jit_compile):
        keras.utils.set_random_seed(0)
        model, x, y = PROBLEMS[problem]()
        self._batches = cut(x, y, SIZE)
        self._step = make_floor(model, keras.optimizers.Adam(), bool(jit_compile))
        self.seconds = []

    def run(self):
        """Train on the samples of a round; return CPU seconds."""
        start = time.process_time()
        for _ in range(BATCHES):
            self._step(self._batches)
        return time.process_time() - start


def cut(x, y, size):
    """Return the samples as tensors of `size` samples."""
    convert = np.asarray if keras.config.backend() == "jax" else keras.ops.convert_to_tensor
    return [(convert(x[i : i + size]), convert(y[i : i + size])) for i in range(0, BATCH, size)]


def measure(problem, rounds, jit_compile):
    """Return the rows with their CPU seconds."""
    rows = {
        OURS: Row(problem, BATCH, SIZE, jit_compile=jit_compile),
        AUTO: Row(problem, BATCH, "auto", jit_compile=jit_compile),
        KERAS: Row(
            problem, SIZE, jit_compile=jit_compile, gradient_accumulation_steps=BATCH // SIZE
        ),
        WHOLE: Row(problem, BATCH, jit_compile=jit_compile),
        FLOOR: Floor(problem, jit_compile),
    }
    rows[AUTO].run(SEARCH)
    for row in rows.values():
        row.run()
    gc.disable()
    for _ in range(rounds):
        for row in rows.values():
            row.seconds.append(row.run())
    gc.enable()
    return rows


def ratio(row, other):
    """Return the median over the rounds of a row's time in units of another's."""
    return statistics.median(a / b for a, b in zip(row.seconds, other.seconds, strict=True))


def report(title, rows):
    """Print one table."""
    print(f"\n### {title}\n")
    print("| | CPU us per sample | of Keras | of the whole batch | of the floor |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, row in rows.items():
        per_sample = 1e6 * statistics.median(row.seconds) / BATCH / BATCHES
        ratios = [ratio(row, rows[other]) for other in (KERAS, WHOLE, FLOOR)]
        print(f"| {name} | {per_sample:.0f} | {' | '.join(f'{r:.2f}' for r in ratios)} |")
    print(f"\n{rows[AUTO].model.microbatch_plan}", flush=True)


def main():
    """Measure and print every table of the active backend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused")
    parser.add_argument("--rounds", type=int, default=15, help="per row (default: 15)")
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="default: all")
    options = parser.parse_args()
    name = keras.config.backend()
    print(
        f"## {name} {arrays.version()}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {', '.join(arrays.devices())}\n\n"
        f"Adam, batches of {BATCH} samples."
    )
    for problem in options.problem or PROBLEMS:
        report(problem, measure(problem, options.rounds, name == "jax"))


if __name__ == "__main__":
    main()
