"""What rows of a table train with: memory of an update and CPU seconds, as shares of the first row.

Memory is what XLA allocates for a step on JAX; elsewhere each row runs in a process of its own, and
its memory is what that process has in use at most, less what it has in use before the batch. Times
are CPU seconds of the process, of rows that run in turn; ratios are medians of the ratios within a
round.
"""

import os
import resource
import statistics
import subprocess
import sys
import time

import keras

from tensorflow_ranger.backend import arrays
from tests.models import temporaries


def peak(model, x, y, size):
    """Return the bytes that an update needs beside the model, in this process."""
    if keras.config.backend() == "jax":
        return temporaries(model, x, y, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        model.train_on_batch(x, y)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def printed_by(module, *arguments):
    """Return the last number that ``python -m module arguments`` prints."""
    # Freed memory is given back at once: what counts is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def print_table(models, memory, x, y, rounds, title):
    """Train the models in turn and print a table.

    Args:
        models: Dict from the name of a row to its compiled model. The others are shares of the
            first one.
        memory: Dict from the name of a row to bytes.
        x: Inputs of a batch.
        y: Its targets.
        rounds: Updates of each model.
        title: What is measured, in words.
    """
    for model in models.values():
        model.train_on_batch(x, y)
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(_seconds(model, x, y))
    first = next(iter(models))
    print(
        f"## {keras.config.backend()} {arrays.version()}, Keras {keras.__version__}\n\n{title}\n\n"
        f"| | memory, MB | of {first} | CPU s an update | of {first} |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for name in models:
        ratio = statistics.median(a / b for a, b in zip(times[name], times[first], strict=True))
        share = memory[name] / memory[first]
        median = statistics.median(times[name])
        print(f"| {name} | {memory[name] / 1e6:.0f} | {share:.2f} | {median:.2f} | {ratio:.2f} |")


def _seconds(model, x, y):
    start = time.process_time()
    model.train_on_batch(x, y)
    return time.process_time() - start
