"""Which Python `make` builds the environment with."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKE = shutil.which("make")
NEW = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
OLD = "#!/bin/sh\nexit 1\n"  # what a Python too old says when it is asked

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(MAKE is None, reason="make is not installed"),
]


def make(folder, pythons, *arguments):
    """Return the finished `make train` where PATH holds nothing but `pythons`."""
    for name, script in pythons.items():
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o755)
    return subprocess.run(
        [str(MAKE), "train", f"VENV={folder}/venv", *arguments],
        cwd=ROOT,
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3.12": NEW}, "python3.12"),
        ({"python3.13": NEW, "python3.11": NEW}, "python3.13"),
        ({"python3": OLD, "python3.11": NEW}, "python3.11"),
        ({"python3": NEW, "python3.12": NEW}, "python3"),
    ],
)
def test_a_python_that_is_new_enough_is_found(pythons, chosen, tmp_path):
    done = make(tmp_path, pythons, "-n")
    assert done.returncode == 0, done.stderr
    assert f"{{ {chosen} -m venv {tmp_path}/venv; }}\n" in done.stdout


def test_the_one_that_is_named_is_taken(tmp_path):
    done = make(tmp_path, {"python3": NEW}, "-n", "PYTHON=python4")
    assert "{ python4 -m venv" in done.stdout


def test_where_there_is_none_the_error_says_what_to_do(tmp_path):
    done = make(tmp_path, {"python3": OLD})
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed: found none" in done.stderr
    assert "make PYTHON=/path/to/python3 train" in done.stderr
