"""Run Keras' own tests of its trainer and callbacks without and with `microbatch`, and compare.

    git clone --branch v3.15.1 https://github.com/keras-team/keras
    KERAS_BACKEND=jax python scripts/keras_own_tests.py keras
    python scripts/keras_own_tests.py keras --size 3 -k tensorboard

CHECKOUT holds Keras' sources in the version that is installed. The tests run twice on the installed
Keras, the second time with ``microbatch(model, size)`` called after every `compile`, but for the
models that `microbatch` refuses. Prints every test whose outcome differs, with its error; the exit
code is 1 if there is one. This file is also the pytest plugin that both runs load.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = ("trainers/trainer_test.py", "callbacks/*_test.py")
PLAIN = 0  # the size that means: without microbatch
OUTCOMES, LOG = "outcomes.json", "log.txt"


def main(arguments=None):
    """Run the tests twice and print what differs; return 0 if nothing does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="Keras' source tree")
    parser.add_argument("--size", type=int, default=2, help="samples per micro-batch")
    options, pytest_arguments = parser.parse_known_args(arguments)
    tests = tests_of(options.checkout)
    plain, parts = outcomes_of(tests, (PLAIN, options.size), pytest_arguments)
    differences = differing(plain["tests"], parts["tests"])
    print(*(f"{line}\n" for line in differences), sep="\n")
    print(summary(plain, parts, len(differences)))
    return 1 if differences else 0


def tests_of(checkout):
    """Return the paths of the test files in `checkout`.

    Raises:
        SystemExit: `checkout` is no source tree of the installed Keras.
    """
    import keras

    source = checkout / "keras" / "src"
    tests = sorted(path for pattern in TESTS for path in source.glob(pattern))
    if not tests:
        raise SystemExit(f"{checkout} holds no {TESTS[0]}: give the root of Keras' source tree.")
    version = re.search(r'__version__ = "(.+)"', (source / "version.py").read_text("utf-8"))
    if version is None or version[1] != keras.__version__:
        raise SystemExit(
            f"{checkout} holds Keras {version and version[1]}, and {keras.__version__} is "
            f"installed: check out v{keras.__version__}."
        )
    return tests


def outcomes_of(tests, sizes, pytest_arguments):
    """Run the files `tests` once for each of `sizes`, at the same time; return what each wrote.

    They run as copies in a folder of their own: where they lie, they would import the Keras beside
    them instead of the installed one.

    Raises:
        SystemExit: pytest ended before it had run the tests.
    """
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in sizes]
        runs = [
            stack.enter_context(started(tests, size, folder, pytest_arguments))
            for size, folder in zip(sizes, folders, strict=True)
        ]
        for run in runs:
            run.wait()
        return [outcomes_in(folder) for folder in folders]


def started(tests, size, folder, pytest_arguments):
    """Return the process that runs copies of `tests` in `folder`."""
    for test in tests:
        shutil.copy(test, folder)
    (folder / "pytest.ini").touch()
    path = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, "-m", "pytest", "-p", Path(__file__).stem]
    command += ["-p", "no:randomly", "-p", "no:cacheprovider", "--disable-warnings"]
    command += ["--continue-on-collection-errors", f"--microbatch={size}", *pytest_arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=(folder / LOG).open("wb"),
        stderr=subprocess.STDOUT,
    )


def outcomes_in(folder):
    """Return what the plugin wrote in `folder`.

    Raises:
        SystemExit: It wrote nothing.
    """
    if not (folder / OUTCOMES).exists():
        raise SystemExit((folder / LOG).read_text("utf-8", "replace"))
    return json.loads((folder / OUTCOMES).read_text("utf-8"))


def differing(plain, parts):
    """Return a line for each test whose outcome is not the same in both."""
    return [
        f"{test}: {plain.get(test, ['not run'])[0]} without microbatch, {outcome} with it: {error}"
        for test, (outcome, error) in sorted(parts.items())
        if plain.get(test, [None])[0] != outcome
    ]


def summary(plain, parts, differences):
    """Return what both runs came to, in words."""
    lines = [
        f"{name}: {dict(collections.Counter(outcome for outcome, _ in run['tests'].values()))}"
        for name, run in (("without microbatch", plain), ("with microbatch", parts))
    ]
    lines.append(f"microbatch was installed {parts['installed']} times, and refused for:")
    lines += [f"  {count} x {reason}" for reason, count in sorted(parts["refused"].items())]
    return "\n".join([*lines, f"{differences} tests differ"])


class Recorder:
    """The pytest plugin's memory: outcomes of tests, and of calls of `microbatch`."""

    def __init__(self):
        self.tests = {}
        self.installed = 0
        self.refused = collections.Counter()

    def pytest_collectreport(self, report):
        """Keep which file could not be imported: a package that it needs may be missing."""
        if report.failed:
            self.tests[report.nodeid] = ("not collected", "")

    def pytest_runtest_logreport(self, report):
        """Keep the outcome of a test: that of its body, or of what failed around it."""
        if report.when == "call" or report.outcome != "passed":
            crash = getattr(report.longrepr, "reprcrash", None)
            error = crash.message.partition("\n")[0] if crash else ""
            self.tests[report.nodeid] = (report.outcome, error)

    def install(self, size):
        """Call `microbatch` after every `compile`.

        It is wrapped in the class that defines it: loading a model does not call the `compile` of a
        class that overrides it.
        """
        import keras

        import tensorflow_ranger as ranger

        owner: Any = next(base for base in keras.Model.__mro__ if "compile" in vars(base))
        plain_compile = owner.compile

        @functools.wraps(plain_compile)
        def compile_and_install(model, *args, **settings):
            plain_compile(model, *args, **settings)
            try:
                ranger.microbatch(model, size)
            except (TypeError, ValueError) as error:
                self.refused[str(error)] += 1
            else:
                self.installed += 1

        owner.compile = compile_and_install


def pytest_addoption(parser):
    """Add the plugin's option."""
    parser.addoption("--microbatch", type=int, help="samples per micro-batch; 0 leaves it out")


def pytest_configure(config):
    """Register the markers of Keras' tests and what records their outcomes."""
    config.addinivalue_line("markers", "requires_trainable_backend: needs gradients")
    config.addinivalue_line("markers", "multi_device: needs several devices")
    recorder = Recorder()
    config.pluginmanager.register(recorder, "recorder")
    if size := config.getoption("--microbatch"):
        recorder.install(size)


def pytest_collection_modifyitems(items):
    """Skip the tests that need several devices, as Keras does where there is one."""
    import pytest

    for item in items:
        if "multi_device" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs several devices"))


def pytest_sessionfinish(session):
    """Write the outcomes."""
    recorder = session.config.pluginmanager.get_plugin("recorder")
    (session.config.rootpath / OUTCOMES).write_text(
        json.dumps(
            {
                "tests": recorder.tests,
                "installed": recorder.installed,
                "refused": recorder.refused,
            }
        ),
        "utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
