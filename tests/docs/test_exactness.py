"""The page on exactness has what its benchmark measures."""

from pathlib import Path

import keras
import pytest

from benchmarks.exactness import CASES, difference
from scripts.exactness import BACKENDS, BEGIN, END

PAGE = Path(__file__).resolve().parents[2] / "docs/exactness.md"
TOLERANCES = {"tensorflow": 1e-10, "jax": 1e-10, "torch": 1e-5}
INEXACT = "`BatchNormalization`"


def table():
    """Return the numbers of the page: a column for each backend."""
    lines = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].split("\n")
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]
    return {name: dict(zip(BACKENDS, map(float, values), strict=True)) for name, *values in rows}


@pytest.mark.once
def test_page_has_every_case_and_its_numbers_are_rounding():
    rows = table()
    assert list(rows) == list(CASES)
    for name, numbers in rows.items():
        for backend, number in numbers.items():
            assert (number < TOLERANCES[backend]) == (name != INEXACT), (name, backend)


@pytest.mark.parametrize("name", ["sample weights", INEXACT])
def test_a_case_ends_where_the_page_says(name, float64):
    tolerance = TOLERANCES[keras.config.backend()]
    assert (difference(*CASES[name]) < tolerance) == (name != INEXACT)
