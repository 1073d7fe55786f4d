"""Finding the data that packages ship, and checking that it is what a task was made for."""

import dataclasses
import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from tensorflow_ranger_cli.errors import CommandError

DIRECTORY = "TENSORFLOW_RANGER_DATA"


def data_directory():
    """Return the directory of downloaded archives, which need not exist."""
    given = os.environ.get(DIRECTORY)
    return Path(given) if given else Path(sys.prefix) / "share" / "tensorflow-ranger"


@dataclasses.dataclass(frozen=True)
class InPackage:
    """A file that an installed Python package ships. The package is not imported.

    Args:
        what: What the file holds, in a few words: "the digits".
        package: Name to import the package by.
        path: The file, below the package.
        sha256: Hexadecimal hash of the file.
        install: Command that installs the package.
        reinstall: Command that puts back a file that is missing or broken.
    """

    what: str
    package: str
    path: str
    sha256: str
    install: str
    reinstall: str

    def locate(self):
        """Return the path of the file.

        Raises:
            CommandError: The package is not installed, or has no such file.
        """
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:
            raise CommandError(
                f"{self.what} are in the package {self.package}, which is not installed. "
                f"Run: {self.install}"
            )
        path = Path(found.origin).parent / self.path
        if not path.is_file():
            raise CommandError(
                f"{self.package} should hold {self.what}, but {path} is missing. "
                f"Run: {self.reinstall}"
            )
        return path

    def read(self):
        """Return the bytes of the file.

        Raises:
            CommandError: It is missing, cannot be read, or is another.
        """
        return _checked(self.locate(), self.sha256, f"Run: {self.reinstall}")


@dataclasses.dataclass(frozen=True)
class Downloaded:
    """An archive that a package index holds, read as it is: nothing in it is run.

    It lies in the directory that the environment variable ``TENSORFLOW_RANGER_DATA`` names, else
    below the Python environment.

    Args:
        what: What the archive holds, in a few words: "the reviews".
        name: File name of the archive.
        sha256: Hexadecimal hash of the archive.
        download: Command that downloads it, to be followed by the name of the directory.
    """

    what: str
    name: str
    sha256: str
    download: str

    def locate(self):
        """Return the path of the archive.

        Raises:
            CommandError: It has not been downloaded.
        """
        path = data_directory() / self.name
        if not path.is_file():
            raise CommandError(f"{self.what} are in {path}, which is missing. {self._remedy}")
        return path

    def read(self):
        """Return the bytes of the archive.

        Raises:
            CommandError: It is missing, cannot be read, or is another.
        """
        return _checked(self.locate(), self.sha256, f"Delete it. {self._remedy}")

    @property
    def _remedy(self):
        directory = data_directory()
        make = "" if directory.is_dir() else f"mkdir -p {directory} && "  # npm makes none
        return f"Run: {make}{self.download} {directory}"


def member(archive, name):
    """Return the bytes of a file in an open tar archive whose hash was checked."""
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()


def _checked(path, sha256, remedy):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise CommandError(f"{path} must have the SHA-256 {sha256}: got {got}. {remedy}")
    return content
