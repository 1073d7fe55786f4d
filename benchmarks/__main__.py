"""Print time per sample and XLA temporaries of accumulation and of its alternatives.

    KERAS_BACKEND=jax python -m benchmarks [--rounds 30] [--problem CNN]

All rows of a table run in turn, window by window, so that a change of the machine's speed touches
them alike. Times are medians over the windows; ratios are medians of the ratios within a round.
"""

import argparse
import platform
import statistics
import time

import keras

from benchmarks.problems import BATCH, PROBLEMS
from benchmarks.steps import make_step
from tensorflow_ranger import RangerOptimizer
from tensorflow_ranger.backend import arrays

STEPS = 8
MICRO_BATCH = BATCH // STEPS
OURS, KERAS, NONE, WHOLE, FLOOR = (
    "RangerOptimizer",
    "Keras gradient_accumulation_steps",
    "an update per micro-batch",
    "whole batch",
    "floor: gradients and sums only",
)


def optimizers():
    """Return the rows of the table: an optimizer and its micro-batch size."""
    return {
        OURS: (RangerOptimizer(inner="adam", accumulation_steps=STEPS), MICRO_BATCH),
        KERAS: (keras.optimizers.Adam(gradient_accumulation_steps=STEPS), MICRO_BATCH),
        NONE: (keras.optimizers.Adam(), MICRO_BATCH),
        WHOLE: (keras.optimizers.Adam(), BATCH),
        FLOOR: (None, MICRO_BATCH),
    }


class Row:
    """One row: a step, its micro-batches, and the times of its windows."""

    def __init__(self, problem, optimizer, size, jit_compile):
        keras.utils.set_random_seed(0)
        model, x, y = problem()
        self.parameters = sum(weight.size for weight in model.get_weights())
        self.step = make_step(model, optimizer, jit_compile)
        self.micro_batches = [
            tuple(keras.ops.convert_to_tensor(values[i : i + size]) for values in (x, y))
            for i in range(0, BATCH, size)
        ]
        self.windows = []

    def run(self):
        """Train on one window and keep the seconds of each micro-batch."""
        seconds = []
        for micro_batch in self.micro_batches:
            start = time.perf_counter()
            self.step(*micro_batch)
            seconds.append(time.perf_counter() - start)
        self.windows.append(seconds)

    def totals(self):
        """Return the seconds of each window."""
        return [sum(window) for window in self.windows]

    def first(self):
        """Return the seconds of each micro-batch but the window's last, which may update."""
        return [seconds for window in self.windows for seconds in window[:-1]]


def measure(problem, rounds, jit_compile):
    """Return the rows, each timed over `rounds` windows after three that are not counted."""
    rows = {
        name: Row(problem, optimizer, size, jit_compile)
        for name, (optimizer, size) in optimizers().items()
    }
    for _ in range(rounds + 3):
        for row in rows.values():
            row.run()
    for row in rows.values():
        del row.windows[:3]
    return rows


def report(title, rows):
    """Print one table."""
    keras_totals = rows[KERAS].totals()
    print(f"\n### {title}\n")
    print("| | µs per sample | of Keras | temporaries / parameters |")
    print("| --- | ---: | ---: | ---: |")
    for name, row in rows.items():
        totals = row.totals()
        ratio = statistics.median(a / b for a, b in zip(totals, keras_totals, strict=True))
        temporaries = row.step.temporaries(*row.micro_batches[0])
        memory = "" if temporaries is None else f"{temporaries / 4 / row.parameters:.2f}"
        per_sample = 1e6 * statistics.median(totals) / BATCH
        print(f"| {name} | {per_sample:.0f} | {ratio:.2f} | {memory} |")
    micro_step = statistics.median(
        a / b for a, b in zip(rows[OURS].first(), rows[FLOOR].first(), strict=True)
    )
    print(f"\nA micro-batch without update takes {micro_step:.2f} of the floor's time.")


def main():
    """Measure and print every table of the active backend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--rounds", type=int, default=30, help="windows per row (default: 30)")
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="default: all")
    options = parser.parse_args()
    name = keras.config.backend()
    print(
        f"## {name} {arrays.version()}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {', '.join(arrays.devices())}\n\n"
        f"Adam, {BATCH} samples as {STEPS} micro-batches of {MICRO_BATCH}."
    )
    for problem in options.problem or PROBLEMS:
        for jit_compile in (False, True) if name == "tensorflow" else (name == "jax",):
            xla = ", XLA" if name == "tensorflow" and jit_compile else ""
            rows = measure(PROBLEMS[problem], options.rounds, jit_compile)
            report(f"{problem}{xla}", rows)


if __name__ == "__main__":
    main()
