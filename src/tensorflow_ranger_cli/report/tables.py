"""The tables of a report."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tensorflow_ranger_cli import byte_counts
from tensorflow_ranger_cli.report.charts import COLOURS, NO_PEAK, NOT_RECORDED, range_in_words
from tensorflow_ranger_cli.runs.result import in_words


class Column(NamedTuple):
    """One of the numbers that a reader compares first.

    Attributes:
        name: What it is.
        words: List with the text for each run.
        numbers: Sequence with the number for each run, or None: bars show them.
        best: Index of the best run, or None.
    """

    name: str
    words: list[str]
    numbers: Sequence[float | None]
    best: int | None = None


def title(run, number):
    """Return the name of a run as HTML, with its color.

    Args:
        run: `Recorded`.
        number: Its place among the runs.
    """
    colour = COLOURS[number % len(COLOURS)]
    return f'<span class="swatch" style="background: {colour}"></span>{escape(run.name)}'


def glance(runs):
    """Return the table of the results and of what they cost, a row for each run.

    Args:
        runs: List of `Recorded`.
    """
    columns = [*_results(runs), *_costs(runs)]
    head = "".join(f"<th>{escape(column.name)}</th>" for column in columns)
    rows = (
        f"<tr><th>{title(run, number)}</th>{''.join(_cell(c, number) for c in columns)}</tr>\n"
        for number, run in enumerate(runs)
    )
    return _table("glance", head, rows)


def summary(runs):
    """Return the table of all that is known of the runs, a column for each.

    Args:
        runs: List of `Recorded`.
    """
    head = "".join(f"<th>{title(run, number)}</th>" for number, run in enumerate(runs))
    columns = [_facts(run) for run in runs]
    labels = list(dict.fromkeys(label for facts in columns for label in facts))
    return _table("summary", head, (_row(label, columns) for label in labels))


def candidates(run):
    """Return the table of the micro-batch sizes that a run tried.

    Args:
        run: `Recorded`.
    """
    if not run.candidates:
        none = "Each batch is a micro-batch: there was nothing to choose."
        return f"<p>{none if run.settings.microbatch is None else NOT_RECORDED}</p>"
    rows = "".join(
        f'<tr><td class="number">{candidate.size}</td>'
        f'<td class="number">{candidate.segments or "-"}</td>'
        f'<td class="number">{_or_dash(candidate.memory, byte_counts.in_words)}</td>'
        f'<td class="number">{_or_dash(candidate.seconds, _duration)}</td>'
        f"<td>{_mark(candidate, run)}</td></tr>\n"
        for candidate in run.candidates
    )
    return (
        '<div class="wide"><table><thead><tr><th>size</th><th>segments</th><th>memory</th>'
        "<th>per sample</th><th></th></tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _table(name, head, rows):
    return (
        f'<div class="wide"><table id="{name}"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _results(runs):
    """Return a column for each figure: the best is marked where all runs train one task."""
    names = dict.fromkeys(figure.name for run in runs for figure in run.figures)
    compare = len(runs) > 1 and len({run.task.name for run in runs}) == 1
    for name in names:
        words, ranks = [], {}
        for number, run in enumerate(runs):
            found = [figure for figure in run.figures if figure.name == name]
            words.append(found[0].form.format(run.figures[found[0]]) if found else _no_result(run))
            if found:
                value = run.figures[found[0]]
                ranks[number] = value if found[0].at_least else -value
        best = max(ranks, key=lambda number: ranks[number]) if compare else None
        yield Column(f"held-out {name}", words, [None] * len(runs), best)
    if not names:
        yield Column("held out", [_no_result(run) for run in runs], [None] * len(runs))


def _costs(runs):
    updates = [int(run.updates[-1]) if len(run.updates) else 0 for run in runs]
    sizes = [run.effective_batch for run in runs]
    seconds = [run.seconds for run in runs]
    totals = [run.total_seconds for run in runs]
    memory = [run.memory for run in runs]
    columns = [
        Column("updates", [f"{count:,}" for count in updates], updates),
        Column("samples per update", [f"{size:,}" for size in sizes], sizes),
        Column("time per sample", [_or_dash(value, _duration) for value in seconds], seconds),
        Column("training time", [_or_dash(value, _duration) for value in totals], totals),
        Column("peak memory", [_or_dash(value, byte_counts.in_words) for value in memory], memory),
    ]
    if any(run.settings.trim_padding for run in runs):
        steps = [run.computed_steps for run in runs]
        words = [_or_dash(value, "{:.0%}".format) for value in steps]
        columns.append(Column("padded time steps computed", words, steps))
    return columns


def _cell(column, number):
    value, largest = column.numbers[number], max(filter(None, column.numbers), default=0)
    classes, style = ["number"], ""
    if value and len(column.numbers) > 1:
        classes.append("bar")
        style = f' style="--share: {value / largest:.0%}"'
    if number == column.best:
        classes.append("best")
    return f'<td class="{" ".join(classes)}"{style}>{escape(column.words[number])}</td>'


def _row(label, columns):
    values = [facts.get(label, "") for facts in columns]
    kind = "differs" if len(set(values)) > 1 else "same" if len(values) > 1 else "only"
    return (
        f'<tr class="{kind}"><th>{escape(label)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>\n"
    )


def _facts(run):
    settings, words = run.settings, run.task.samples
    rate = settings.learning_rate
    facts = {
        "result": f"held-out {in_words(run.figures)}" if run.figures else _no_result(run),
        "task": f"{run.task.name}: {run.task.title}",
        "optimizer": settings.optimizer_in_words,
        "learning rate": "the optimizer's own" if rate is None else f"{rate:g}",
        "backend": str(settings.backend),
        "trained by": str(run.measured.get("devices", NOT_RECORDED)),
        "seed": str(settings.seed),
        "epochs": f"{len(run.epochs)} of {settings.epochs}",
        "updates": f"{run.updates[-1]:,}" if len(run.updates) else "0",
        "samples": f"{run.samples * len(run.epochs):,} {words} seen"
        + ("" if "samples" in run.measured else ", if each batch was full"),
        "effective batch": f"{run.effective_batch:,} {words}",
        "micro-batch": _micro_batch(run),
        "time per sample": _time(run),
        "peak memory": _memory(run),
        "noise scale": range_in_words(run.noise[-1]) if run.noise else NOT_RECORDED,
        "skipped micro-batches": _skipped(run),
    }
    if run.task.padding is not None:
        facts["padding"] = run.measured.get("padding") or "not trimmed: --trim-padding does"
    for name in run.metrics:
        facts[f"held-out {name.replace('_', ' ')}, last epoch"] = _held_out(run, name)
    if run.note is not None:
        facts["note"] = "The last checkpoint is damaged: this is the one before it."
    return facts


def _no_result(run):
    return NOT_RECORDED if run.is_finished else "none yet"


def _held_out(run, name):
    updates, _, values = run.held_out(name)
    if not values:
        return "none yet"
    # What is left of a window becomes an update after the last epoch was judged.
    is_last = updates[-1] == run.updates[-1]
    return f"{values[-1]:.4g}" + ("" if is_last else f", at update {updates[-1]:,}")


def _micro_batch(run):
    settings = run.settings
    if run.chosen is not None:
        return f"{run.chosen}. {run.reason}"
    if settings.microbatch is None:
        count = settings.accumulation_steps
        makes = "one makes an update" if count == 1 else f"{count} make one update"
        return f"{settings.batch_size}. Each batch is a micro-batch, and {makes}."
    return NOT_RECORDED


def _time(run):
    if run.seconds is None:
        return NOT_RECORDED
    several = len(run.per_epoch("seconds")[0]) > 1
    measured = "median epoch after the first" if several else "one epoch, with what was compiled"
    return f"{_duration(run.seconds)} ({measured})"


def _duration(seconds):
    if seconds >= 60:
        return f"{seconds / 60:,.1f} min"
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{1e3 * seconds:,.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:,.1f} µs"


def _memory(run):
    if run.memory is not None:
        return byte_counts.in_words(run.memory)
    return NO_PEAK if run.is_measured else NOT_RECORDED


def _skipped(run):
    if run.skipped is not None:
        return str(run.skipped)
    return "not counted without RangerOptimizer" if run.is_measured else NOT_RECORDED


def _or_dash(value, words):
    return "-" if value is None else words(value)


def _mark(candidate, run):
    if not candidate.fits:
        return "does not fit"
    return "chosen" if candidate.size == run.chosen else ""
