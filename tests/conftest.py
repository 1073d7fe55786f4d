"""Fixtures shared by the suite."""

import gc
import os
import time
from pathlib import Path

import keras
import pytest

from tests.float64 import in_float64


@pytest.fixture
def float64():
    """Compute in float64, as far as the backend can."""
    with in_float64():
        yield "float64"


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory, worker_id):
    """Let JAX look up what another test has compiled, in any worker or in a process it starts."""
    if keras.config.backend() == "jax":
        import jax

        folder = tmp_path_factory.getbasetemp()
        folder = (folder if worker_id == "master" else folder.parent) / "compiled"
        settings = {
            "jax_compilation_cache_dir": str(folder),
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in settings.items():
            jax.config.update(name, value)
            os.environ[name.upper()] = str(value)


MAPS = Path("/proc/self/maps")
MOST_MAPS = 20_000  # of the 65,530 that Linux gives a process


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Let JAX forget what it has compiled before it crashes for want of memory maps."""
    yield
    if keras.config.backend() == "jax" and MAPS.exists():
        import jax

        with MAPS.open() as maps:
            if sum(1 for _ in maps) > MOST_MAPS:
                gc.collect()
                jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def quicker_collections():
    """Let Python look less often for garbage, and not at what imports have made, which stays."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, *thresholds[1:])
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seed():
    """Begin every test with the same seed."""
    keras.utils.set_random_seed(0)


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config, items):
    """Leave out what does not depend on the backend where another backend has run it."""
    if "LEAVE_OUT_ONCE" not in os.environ:
        return
    for item in items:
        if item.get_closest_marker("first"):
            item.add_marker(pytest.mark.thorough)
    done = [item for item in items if item.get_closest_marker("once")]
    config.hook.pytest_deselected(items=done)
    items[:] = [item for item in items if not item.get_closest_marker("once")]


def pytest_runtest_setup():
    """Leave out what did not begin in the time that `scripts/test.py --minutes` gives."""
    if time.time() > float(os.environ.get("BEGIN_NO_TEST_AFTER", "inf")):
        pytest.skip("no time left: see --minutes of scripts/test.py")


def pytest_terminal_summary(terminalreporter):
    """Say how many random cases were compared."""
    reports = terminalreporter.stats.get("passed", [])
    cases = sum(n for report in reports for name, n in report.user_properties if name == "cases")
    if cases:
        terminalreporter.write_line(f"{cases} random microbatch cases passed")
