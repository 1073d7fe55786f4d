"""Train every task with its own settings, and compare what it reaches with its bar.

    python scripts/held_out.py                              # all tasks, one after the other
    python scripts/held_out.py digits reviews               # some
    python scripts/held_out.py --output DIR                 # keep the runs
    KERAS_BACKEND=jax python scripts/held_out.py            # on another backend

Prints one table, and its lines to stderr as they come; the exit code is 1 if a bar was missed.
`reviews-multitask` is compared with models of one output each, which are trained for it: no task
may lose more than a point.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from pathlib import Path

from tensorflow_ranger_cli.errors import CommandError
from tensorflow_ranger_cli.keras_backend import import_keras
from tensorflow_ranger_cli.runs.launch import Launch, joined
from tensorflow_ranger_cli.runs.run import Run
from tensorflow_ranger_cli.runs.run_directory import RunDirectory
from tensorflow_ranger_cli.runs.settings import Settings
from tensorflow_ranger_cli.silence import silent_stdout
from tensorflow_ranger_cli.tasks import registry

HEADER = ("task", "held out", "bar", "seconds", "updates", "batch", "micro-batch")
MULTITASK = "reviews-multitask"
MAY_LOSE = 0.01


def main(arguments=None):
    """Train the tasks; return 0 if all of them reach their bars."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="all of them if none is named")
    parser.add_argument("--output", type=Path, help="directory for the runs")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            wanted = [registry.find(name) for name in options.tasks or registry.names()]
            backend = import_keras()
            trained = [
                Trained(task, options.output or Path(folder), backend)
                for one in wanted
                for task in (*alone(one), one)
            ]
        except CommandError as error:
            print(f"Error: {error}", file=sys.stderr)
            return error.exit_code
    print(f"{backend}:")
    table([row for one in trained for row in one.rows()])
    lost = losses(trained)
    print(*lost, sep="\n")
    return 0 if all(one.passed for one in trained) and not lost else 1


class Trained:
    """A task after its training, alone in this process.

    Args:
        task: `Task`.
        output: `pathlib.Path` for the directory of the run.
        backend: Name of the backend that Keras runs on.
    """

    def __init__(self, task, output, backend):
        self.name = task.name
        # A model of one output has the name of none of the command line's tasks.
        known = task.name if task.name in registry.names() else MULTITASK
        self.settings = Settings.new({"task": known}).on(backend)
        directory = RunDirectory(output / task.name.replace(": ", "-"))
        launched = Launch()
        start = time.monotonic()
        with directory.begun(), silent_stdout(), joined(launched, backend) as engine:
            run = Run(task, directory, self.settings, {}, None, launched, engine)
            self.figures = run.train() or {}
        self.seconds = time.monotonic() - start
        self.updates = run.updates
        for row in self.rows():
            print(*row, sep=", ", file=sys.stderr, flush=True)

    @property
    def passed(self):
        """Whether every figure reaches its bar."""
        return all(figure.passes(number) for figure, number in self.figures.items())

    def rows(self):
        """Yield a line of the table for each figure."""
        for figure, number in self.figures.items():
            limit = figure.form.format(figure.bar)
            yield (
                self.name,
                figure.in_words(number) + ("" if figure.passes(number) else ", missed"),
                f"{'>=' if figure.at_least else '<='} {limit}",
                f"{self.seconds:.0f}",
                str(self.updates),
                str(self.settings.batch_size * self.settings.accumulation_steps),
                str(self.settings.microbatch or self.settings.batch_size),
            )


def alone(task):
    """Return a task for each output that `task` has beside others, with a model of it alone."""
    if task.name != MULTITASK:
        return []
    from tensorflow_ranger_cli.tasks import reviews_multitask

    def load(output):
        return tuple((x, {output: y[output]}) for x, y in task.load())

    return [
        dataclasses.replace(
            task,
            name=f"{task.name}: {output}",
            load=functools.partial(load, output),
            build_model=functools.partial(reviews_multitask.build_model, outputs=(output,)),
            compile_arguments=functools.partial(
                reviews_multitask.compile_arguments, outputs=(output,)
            ),
            metrics=("accuracy",),
            figures=(dataclasses.replace(figure, value="accuracy"),),
        )
        for output, figure in zip(reviews_multitask.OUTPUTS, task.figures, strict=True)
    ]


def losses(trained):
    """Return a line for each output that a model of its own serves better, beyond what may be."""
    figures = {one.name: one.figures for one in trained}
    together = {figure.name: number for figure, number in figures.get(MULTITASK, {}).items()}
    single = {
        figure.name: number
        for name, own in figures.items()
        if name.startswith(f"{MULTITASK}: ")
        for figure, number in own.items()
    }
    return [
        f"{name} is {number:.1%} in one model with others, and {single[name]:.1%} alone"
        for name, number in together.items()
        if number < single[name] - MAY_LOSE
    ]


def table(rows):
    """Print the rows under `HEADER`, in columns."""
    rows = [HEADER, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
