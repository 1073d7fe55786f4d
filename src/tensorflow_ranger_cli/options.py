"""Options that commands share, and what their values may be."""

import math
from typing import Annotated

import typer
from typer.core import TyperCommand

from tensorflow_ranger_cli import byte_counts, spelling
from tensorflow_ranger_cli.errors import UsageError
from tensorflow_ranger_cli.keras_backend import BACKENDS

AUTO = "auto"

# Headings of the options of train.
BATCH = "Batch and memory"
OPTIMIZER = "Optimizer"
TRAINING = "Training"
RESULTS = "Results"
OTHERS = "Other options"


class GroupedCommand(TyperCommand):
    """A command whose help has headings: its options' ``rich_help_panel``.

    Typer itself writes headings in the boxes of Rich alone.
    """

    def format_options(self, ctx, formatter):
        """Write the arguments, and the options by their headings."""
        groups = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                heading = getattr(parameter, "rich_help_panel", None) or OTHERS
                groups.setdefault("Arguments" if is_argument else heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def integer(option, minimum, maximum=None, or_else=None):
    """Return the parser of an integer option.

    Args:
        option: Name of the option.
        minimum: The smallest integer allowed.
        maximum: The largest integer allowed, or None.
        or_else: A word that is allowed, too, or None.
    """
    wanted = f"an integer >= {minimum}" + (f" and <= {maximum}" if maximum else "")
    wanted += f", or {or_else}" if or_else else ""

    def parse(value):
        if value == or_else:
            return value
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < minimum or (maximum and number > maximum):
            raise UsageError(f"{option} must be {wanted}: got {value}")
        return number

    return parse


def learning_rate(value):
    """Return the number that ``--learning-rate`` gives."""
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"--learning-rate must be a finite number > 0: got {value}")
    return rate


def _backend(value):
    if value not in BACKENDS:
        raise UsageError(
            f"--backend must be one of {', '.join(BACKENDS)}: got {value}"
            f"{spelling.nearest(value, BACKENDS)}"
        )
    return value


def _memory_limit(value):
    return byte_counts.parsed("--memory-limit", value)


def completion(names):
    """Return the function that completes one of the names on the command line."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Backend = Annotated[
    str | None,
    typer.Option(
        autocompletion=completion(BACKENDS),
        help=f"Keras backend: {', '.join(BACKENDS)}.",
        metavar="NAME",
        parser=_backend,
        rich_help_panel=TRAINING,
        show_default="KERAS_BACKEND, else tensorflow",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document instead of text."),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        help="Memory that training may need, such as 4GB.",
        metavar="BYTES",
        parser=_memory_limit,
        rich_help_panel=BATCH,
        show_default="what the machine has",
    ),
]
