"""Runs of several processes, each of which all tests share."""

import filelock
import pytest


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """Return a function ``(name, run) -> folder``: `run(folder)` writes to it, once for all tests.

    The workers of pytest-xdist share it, too.
    """
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def run_once(name, run):
        folder = root / name
        with filelock.FileLock(root / f"{name}.lock"):
            if not folder.exists():
                folder.mkdir()
                run(folder)
                (folder / "done").touch()
        assert (folder / "done").exists(), f"{name} failed in another test"
        return folder

    return run_once
