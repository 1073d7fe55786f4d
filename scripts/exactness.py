"""Measure on all backends how far micro-batches end from plain `fit`, for docs/exactness.md.

    python scripts/exactness.py

benchmarks/exactness.py has the cases, and says what the numbers are.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/exactness.md"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
BEGIN, END = "<!-- measured -->\n", "<!-- end of measured -->\n"


def main():
    """Measure, and put the table between the marks of the page."""
    text = table([measured_by(backend) for backend in BACKENDS])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")


def measured_by(backend):
    """Return the numbers that a process with `backend` measures, by the names of the cases."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.exactness"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(columns):
    """Return the table of all cases."""
    head = f"| | {' | '.join(BACKENDS.values())} |\n| --- | ---: | ---: | ---: |\n"
    return head + "\n".join(
        f"| {name} | {' | '.join(number(column[name]) for column in columns)} |"
        for name in columns[0]
    )


def number(value):
    """Return one digit of `value`."""
    return f"{value:.0e}" if value < 0.01 else f"{value:.1g}"


if __name__ == "__main__":
    main()
