import pytest

from tensorflow_ranger.batch_size.plan import (
    Candidate,
    MicrobatchPlan,
    format_bytes,
    parse_bytes,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ("512", 512),
        ("4GB", 4 * 10**9),
        ("1.5 gb", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("2 KB", 2000),
    ],
)
def test_bytes_are_read(value, expected):
    assert parse_bytes(value) == expected


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "", "GB", "4 XB", "four", "-1GB", "inf", None])
def test_other_limits_are_refused(value):
    with pytest.raises(ValueError, match=r"memory_limit must be .*'4GB'"):
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
