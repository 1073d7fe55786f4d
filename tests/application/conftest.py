"""Runs that several tests look at."""

import pytest

from tensorflow_ranger_cli.main import main
from tests.application import runs


@pytest.fixture(autouse=True)
def seed():
    """Replace the suite's slow reset: a run's own seed must be enough."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return the directory of an undisturbed run of three epochs. Only read it."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert runs.train(directory, "--epochs", "3") == 0
    return directory


@pytest.fixture(scope="session")
def micro_batched(tmp_path_factory):
    """Return the directory of a run of two epochs with `MICROBATCH`. Only read it."""
    directory = tmp_path_factory.mktemp("micro_batched") / "run"
    assert runs.train(directory, *runs.MICROBATCH, "--epochs", "2") == 0
    return directory


@pytest.fixture(scope="session")
def noisy(tmp_path_factory):
    """Return the directory of a run with a measured noise scale. Only read it."""
    directory = tmp_path_factory.mktemp("noisy") / "noisy"
    options = (*runs.MICROBATCH, "--epochs", "2", "--noise-scale")
    assert runs.train(directory, *options) == 0
    return directory


@pytest.fixture(scope="session")
def compared(tmp_path_factory, finished, noisy):
    """Return a page on two runs."""
    path = tmp_path_factory.mktemp("compared") / "page.html"
    assert main(["report", str(finished), str(noisy), "--output", str(path)]) == 0
    return path


@pytest.fixture
def stopped(tmp_path, finished):
    """Return a directory that holds a run of three epochs, free to be changed."""
    directory = tmp_path / "stopped"
    directory.mkdir()
    for file in finished.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory
