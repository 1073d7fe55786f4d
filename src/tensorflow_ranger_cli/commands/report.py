"""``tensorflow-ranger report``."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.report import recorded_run
from tensorflow_ranger_cli.runs.run_directory import writing

NAME = "report.html"
BEGINS = "<!doctype html>"


def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR", help="Runs to show.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page to write.",
            metavar="FILE",
            show_default=f"{NAME}, in DIR if there is one, else here",
        ),
    ] = None,
):
    """Write a page on one run, or several side by side.

    Any browser opens it from disk. It shows the result, loss and metrics against updates and
    against samples, the batch, the micro-batch and why it was chosen, time and memory, the noise
    scale if train measured it, and the command that repeats the run. A run that still trains is
    shown up to its last epoch.
    """
    if importlib.util.find_spec("plotly") is None:
        raise CommandError(
            "the charts need plotly, which is not installed. "
            'Run: pip install "tensorflow-ranger[examples]"'
        )
    directories = list(dict.fromkeys(directories))
    if output is None:
        output = directories[0] / NAME if len(directories) == 1 else Path(NAME)
    runs = [recorded_run.read(path) for path in directories]
    last = [path.resolve().name for path in directories]
    for run, name in zip(runs, last, strict=True):
        if last.count(name) == 1:
            run.name = name
        if run.note is not None:
            print(run.note.partition(". ")[0] + ". Shown is the one before it")
    from tensorflow_ranger_cli.report.page import page

    _write(output, page(runs))
    print(f"{output} shows {', '.join(run.name for run in runs)}. Open it in a browser")


def _write(path, text):
    with writing(path):
        if path.is_file() and not _is_page(path):
            raise UsageError(
                f"--output must be a new file or a page to replace: got {path}, which is neither. "
                "Choose another"
            )
        temporary = path.parent / f".{path.name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _is_page(path):
    with path.open("rb") as file:
        return file.read(len(BEGINS)).lower() == BEGINS.encode()
