"""Run the test suite once per Keras backend and sum up.

A backend is fixed when Keras is imported, so each gets a process of its own. All of them run, even
after one has failed. The last line is ``N passed, N failed``, over all backends.

    python scripts/test.py                                  # everything
    python scripts/test.py --backends "jax torch"           # two backends
    python scripts/test.py tests/unit -k window             # paths and options of pytest
    python scripts/test.py -m thorough --minutes 30         # as many tests as begin in that time
"""

import argparse
import dataclasses
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

# The first one runs what hardly depends on the backend, too: it is the one that does so soonest.
BACKENDS = ("torch", "tensorflow", "jax")
ROOT = Path(__file__).resolve().parent.parent

NOTHING_SELECTED = 5  # pytest's exit status

# Every worker has one core. Without these, each framework starts a thread per core in each worker,
# and the threads wait for one another.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",  # PyTorch, BLAS
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "NPROC": "1",  # JAX
}

# Most of the time goes into compiling networks that run for milliseconds. XLA compiles sooner
# with few of LLVM's optimizations, and on JAX with its older code generator; the benchmarks and
# `make train` run with both as they are. (At level 0 float64 numbers are off by 1e-8 now and then.)
COMPILED_SOONER = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
XLA_FLAGS = {
    "jax": f"{COMPILED_SOONER} --xla_cpu_use_fusion_emitters=false",
    "tensorflow": COMPILED_SOONER,
}


@dataclasses.dataclass
class Outcome:
    """What one run of the suite came to."""

    passed: int
    failed: int
    skipped: int
    note: str = ""


def main(arguments=None):
    """Run the suites; return 0 if all of them passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backends", type=backend_names, default=BACKENDS)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes per backend"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="begin no test later; those that were not begun count as skipped (default: no limit)",
    )
    options, pytest_arguments = parser.parse_known_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    outcomes = []
    lines = []
    for place, backend in enumerate(options.backends):
        print(f"=== {backend}", flush=True)
        start = time.monotonic()
        seconds = (end - start) / (len(options.backends) - place)
        outcome = run(
            backend, options.workers, pytest_arguments, is_first=place == 0, seconds=seconds
        )
        outcomes.append(outcome)
        lines.append(
            f"{backend}: {counts(outcome)} in {time.monotonic() - start:.0f} s{outcome.note}"
        )
    total = Outcome(
        sum(outcome.passed for outcome in outcomes),
        sum(outcome.failed for outcome in outcomes),
        sum(outcome.skipped for outcome in outcomes),
    )
    print("", *lines, counts(total), sep="\n", flush=True)
    return 1 if total.failed else 0


def backend_names(text):
    """Return the names in `text`, which stand apart by spaces.

    Raises:
        argparse.ArgumentTypeError: There is none, or an unknown one.
    """
    names = text.split()
    if not names or not set(names) <= set(BACKENDS):
        raise argparse.ArgumentTypeError(f"expected names out of {BACKENDS}: got {text!r}")
    return names


def counts(outcome):
    """Return ``N passed, N failed``, with the skipped if there are any."""
    text = f"{outcome.passed} passed, {outcome.failed} failed"
    return f"{text}, {outcome.skipped} skipped" if outcome.skipped else text


def run(backend, workers, pytest_arguments, is_first=True, seconds=math.inf):
    """Run the suite on one backend; return its `Outcome`.

    Args:
        backend: Name of the backend.
        workers: Number of processes.
        pytest_arguments: List of strings for pytest.
        is_first: Whether to run the tests that do not depend on the backend, or hardly, too.
        seconds: Float, the time in which tests may begin.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *pytest_arguments]
        if workers > 1:
            command += ["--numprocesses", str(workers), "--dist", "worksteal"]
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
        if workers > 1:
            environment |= ONE_THREAD
        # What tests/conftest.py reads.
        if not is_first:
            environment["LEAVE_OUT_ONCE"] = "1"
        if math.isfinite(seconds):
            environment["BEGIN_NO_TEST_AFTER"] = str(time.time() + seconds)
        if backend in XLA_FLAGS:
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {XLA_FLAGS[backend]}"
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status == NOTHING_SELECTED and not is_first:
            return Outcome(0, 0, 0, " (the first backend ran all)")
        return outcome_of(status, report)


def outcome_of(status, report):
    """Return the `Outcome` that pytest's exit status and its JUnit report tell.

    A suite that ran no test, or ended before its end, counts as a failure.
    """
    if not report.exists():
        return Outcome(0, 1, 0, f" (pytest ended with status {status} and no report)")
    suite = next(ElementTree.parse(report).iter("testsuite"))
    number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    # A test that fails twice, in its body and in its teardown, is one of `tests`.
    passed = max(0, number["tests"] - failed - number["skipped"])
    if not passed and not failed:
        return Outcome(0, 1, number["skipped"], " (no test ran)")
    if status and not failed:
        return Outcome(passed, 1, number["skipped"], f" (pytest ended with status {status})")
    return Outcome(passed, failed, number["skipped"])


if __name__ == "__main__":
    sys.exit(main())
