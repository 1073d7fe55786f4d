"""The record of a choice: which micro-batch sizes were looked at, and why one was taken."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One micro-batch size.

    Args:
        size: Samples.
        memory: Bytes its training step needs, or None where they are not known.
        seconds: Seconds per sample, or None if it was not timed.
        fits: Whether it fits the memory.
        segments: Segments of layers that the backward pass runs again so that the size fits; 0
            where it keeps what all layers make, or runs again what ``rematerialize=`` says.
        predicted: Bytes that the size and the segments were predicted to need before they ran; None
            where that was known, or not predicted.
    """

    size: int
    memory: int | None = None
    seconds: float | None = None
    fits: bool = True
    segments: int = 0
    predicted: int | None = None


@dataclasses.dataclass(frozen=True)
class MicrobatchPlan:
    """The choice of a micro-batch size; printing it gives a table.

    Args:
        batch: Samples of the batch, or None before the first one.
        candidates: The sizes that were looked at, the smallest first.
        chosen: The size in use.
        reason: Why, in words.
        measuring: Whether other sizes are still to be tried.
        loss: What is computed at once for the whole batch, and why; None where each micro-batch has
            its own part of the loss.
        padding: How many time steps of the first batch are computed; None without ``padding=``.
        time_steps: Pair of the numbers in `padding`: computed time steps, and padded ones; or None.
        rematerialization: How many layers' calls the backward pass runs again, and what it keeps in
            place of their outputs; None where it runs none again.
        head: In how many chunks the logits are computed, or why they are not; None where they are
            not the largest thing in memory.
        segments: Those of the candidate in use: see `Candidate`.
    """

    batch: int | None
    candidates: tuple[Candidate, ...]
    chosen: int | None
    reason: str
    measuring: bool = False
    loss: str | None = None
    padding: str | None = None
    time_steps: tuple[int, int] | None = None
    rematerialization: str | None = None
    head: str | None = None
    segments: int = 0

    def __str__(self) -> str:
        columns = [_Column("micro-batch", lambda each: str(each.size))]
        if any(each.segments for each in self.candidates):
            columns.append(_Column("segments", lambda each: str(each.segments or "-")))
        columns.append(_Column("memory", lambda each: _bytes_or_dash(each.memory)))
        if any(each.predicted is not None for each in self.candidates):
            columns.append(_Column("predicted", lambda each: _bytes_or_dash(each.predicted)))
        columns.append(_Column("per sample", _time_per_sample))
        lines = [" ".join([*(f"{each.title:>12}" for each in columns), " chosen"])]
        for candidate in self.candidates:
            cells = [f"{each.cell(candidate):>12}" for each in columns]
            lines.append(" ".join([*cells, f" {self._mark(candidate)}"]).rstrip())
        notes = (self.loss, self.padding, self.rematerialization, self.head)
        return "\n".join([*lines, self.reason, *(note for note in notes if note is not None)])

    def _mark(self, candidate):
        if not candidate.fits:
            return "does not fit"
        in_use = (self.chosen, self.segments)
        return "yes" if (candidate.size, candidate.segments) == in_use else ""


class _Column(NamedTuple):
    title: str
    cell: Callable[[Candidate], str]


def _bytes_or_dash(count):
    return "-" if count is None else format_bytes(count)


def _time_per_sample(candidate):
    return "-" if candidate.seconds is None else f"{1e6 * candidate.seconds:.1f} us"


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def format_bytes(count):
    """Return `count` bytes in words, such as ``"1.5 GB"``."""
    for unit in ("TB", "GB", "MB", "KB"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.1f} {unit}"
    return f"{count} B"


def parse_bytes(value, name="memory_limit"):
    """Return a number of bytes from a number or from a text such as ``"4GB"`` or ``"512 MiB"``.

    No training fits less than a megabyte: whoever gives less has left out the unit.

    Args:
        value: Real number, or text.
        name: What the argument is called.

    Raises:
        ValueError: `value` is anything else, or less than a megabyte.
    """
    number, unit = value, ""
    if isinstance(value, str):
        text = value.strip().upper()
        number = text.rstrip("KMGTIB ")
        unit = text[len(number) :].strip()
    try:
        count = None if isinstance(value, bool) else int(float(number) * _UNITS[unit or "B"])
    except (KeyError, OverflowError, TypeError, ValueError):
        count = None
    if count is None or count < _UNITS["MB"]:
        bytes_meant = "" if count is None or unit else f", which is {count} bytes"
        raise ValueError(
            f"{name} must be at least 1 MB, as a number of bytes or as a text with a unit, such as "
            f"'4GB' or '512MiB': got {value!r}{bytes_meant}."
        )
    return count
