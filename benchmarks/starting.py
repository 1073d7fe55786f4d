"""Print how long `fit` takes to its first update, and what `"auto"` costs until it has settled.

    KERAS_BACKEND=jax python -m benchmarks.starting [--rounds 5] [--problem CNN]

Every measurement is a process of its own, so that nothing has been traced or compiled before; the
ways to train take turns. Times are CPU seconds from the call of `fit` to the end of an update;
ratios are medians of the ratios to the plain process of the same round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import keras
import numpy as np

import tensorflow_ranger as ranger
from benchmarks.problems import BATCH, PROBLEMS

PLAIN, FIXED, AUTO = "plain fit", "microbatch(model, 32)", 'microbatch(model, "auto")'
SIZES = {PLAIN: None, FIXED: 32, AUTO: "auto"}
BATCHES = {PLAIN: 8, FIXED: 1, AUTO: 60}  # at most


class Clock(keras.callbacks.Callback):
    """Notes the time after each batch, and ends `fit` once the search for a size has ended."""

    def __init__(self):
        super().__init__()
        self._begun = time.process_time()
        self.seconds = []

    def on_train_batch_end(self, batch, logs=None):
        """Wait for the batch, whose loss is in `logs`."""
        float((logs or {})["loss"])
        self.seconds.append(time.process_time() - self._begun)
        plan = getattr(self.model, "microbatch_plan", None)
        if plan is not None and not plan.measuring:
            self.model.stop_training = True


def train(problem, way):
    """Train, and print the CPU seconds at which each batch ended."""
    keras.utils.set_random_seed(0)
    model, x, y = PROBLEMS[problem]()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if SIZES[way] is not None:
        ranger.microbatch(model, SIZES[way])
    x, y = (np.concatenate([each] * BATCHES[way]) for each in (x, y))
    clock = Clock()
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[clock])
    print(json.dumps(clock.seconds))


def measured(problem, way):
    """Return what `train` prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.starting", "--problem", problem, "--way", way]
    return json.loads(
        subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).splitlines()[-1]
    )


def report(problem, rounds):
    """Measure one network, and print its line of the table."""
    firsts = {FIXED: [], AUTO: []}
    plain_firsts, works, batches = [], [], []
    for _ in range(rounds):
        plain = measured(problem, PLAIN)
        batch = statistics.median(np.diff(plain))
        plain_firsts.append(plain[0])
        firsts[FIXED].append(measured(problem, FIXED)[0] / plain[0])
        auto = measured(problem, AUTO)
        firsts[AUTO].append(auto[0] / plain[0])
        batches.append(len(auto))
        works.append((auto[-1] - plain[0]) / batch - (len(auto) - 1))
    print(
        f"| {problem} | {statistics.median(plain_firsts):.2f} | "
        f"{statistics.median(firsts[FIXED]):.2f} | {statistics.median(firsts[AUTO]):.2f} | "
        f"{statistics.median(batches):.0f} | {statistics.median(works):.1f} |",
        flush=True,
    )


def main():
    """Print the table of the active backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="processes per way (default: 5)")
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="default: all")
    parser.add_argument("--way", choices=SIZES, help="train in this process, and print its times")
    options = parser.parse_args()
    if options.way is not None:
        train(options.problem[0], options.way)
        return
    print(
        f"## {keras.config.backend()}\n\n"
        f'| | {PLAIN}, CPU s to the first update | {FIXED}, of that | "auto", of that '
        '| batches until "auto" settles | work beyond plain training, in plain batches |\n'
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for problem in options.problem or PROBLEMS:
        report(problem, options.rounds)


if __name__ == "__main__":
    main()
