import numpy as np
import pytest

from tensorflow_ranger.batch_size.plan import (
    Candidate,
    MicrobatchPlan,
    format_bytes,
    parse_bytes,
)

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (10**6, 10**6),
        ("5120000", 5_120_000),
        (4.5e9, 4_500_000_000),
        (np.int64(2**30), 2**30),
        (np.float32(2**30), 2**30),
        ("4GB", 4 * 10**9),
        ("1.5 gb", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("2000 KB", 2_000_000),
    ],
)
def test_bytes_are_read(value, expected):
    assert parse_bytes(value) == expected


@pytest.mark.parametrize(
    "value",
    [-1, True, 1.5, np.inf, np.nan, "", "GB", "4 XB", "four", "-1GB", "inf", "nan", "0.9MB", None],
)
def test_other_limits_are_refused(value):
    with pytest.raises(ValueError, match=r"memory_limit must be at least 1 MB.*'4GB'"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [4, "4", 4.0])
def test_a_unit_that_is_missing_is_named(value):
    with pytest.raises(ValueError, match=f"a unit, .* got {value!r}, which is 4 bytes"):
        parse_bytes(value)


def test_bytes_are_written():
    assert [format_bytes(n) for n in (12, 1500, 2_500_000, 4 * 10**9)] == [
        "12 B",
        "1.5 KB",
        "2.5 MB",
        "4.0 GB",
    ]


def test_a_plan_prints_a_table():
    plan = MicrobatchPlan(
        64,
        (Candidate(16, 10**6, 2e-6), Candidate(32, 2 * 10**6, 1e-6), Candidate(64, fits=False)),
        32,
        "Because.",
    )
    lines = str(plan).splitlines()
    assert lines[0].split() == ["micro-batch", "memory", "per", "sample", "chosen"]
    assert [line.split() for line in lines[1:]] == [
        ["16", "1.0", "MB", "2.0", "us"],
        ["32", "2.0", "MB", "1.0", "us", "yes"],
        ["64", "-", "-", "does", "not", "fit"],
        ["Because."],
    ]


def test_a_plan_with_segments_prints_them_and_what_was_predicted():
    plan = MicrobatchPlan(
        64,
        (
            Candidate(16, 10**6, 2e-6),
            Candidate(32, 2 * 10**6, fits=False),
            Candidate(32, 10**6, 1e-6, segments=3, predicted=1_100_000),
        ),
        32,
        "Because.",
        segments=3,
    )
    lines = str(plan).splitlines()
    assert lines[0].split() == [
        *("micro-batch", "segments", "memory", "predicted", "per", "sample", "chosen"),
    ]
    assert [line.split() for line in lines[1:]] == [
        ["16", "-", "1.0", "MB", "-", "2.0", "us"],
        ["32", "-", "2.0", "MB", "-", "-", "does", "not", "fit"],
        ["32", "3", "1.0", "MB", "1.1", "MB", "1.0", "us", "yes"],
        ["Because."],
    ]
