"""What a release uploads is complete, and works without the rest of the clone."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "tensorflow_ranger-{}".format(
    tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
)

pytestmark = [pytest.mark.once, pytest.mark.thorough]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build the source archive, and unpack it."""
    folder = tmp_path_factory.mktemp("sdist")
    build(ROOT, "sdist", folder)
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Build the wheel from the source archive."""
    folder = tmp_path_factory.mktemp("wheel")
    build(sdist, "wheel", folder)
    return folder / f"{NAME}-py3-none-any.whl"


def build(source, target, folder):
    run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder],
        source,
    )


def run(command, folder, **environment):
    """Run a command, and return what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sdist_holds_all_of_the_project(sdist):
    tracked = run(["git", "ls-files"], ROOT).splitlines()
    missing = [name for name in tracked if not (sdist / name).exists()]
    assert all(name.startswith((".ci/", ".git")) for name in missing)
    assert not (sdist / ".venv").exists()


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"{NAME}.dist-info/METADATA")
    sources = [p for p in ROOT.glob("src/**/*") if p.is_file() and "__pycache__" not in p.parts]
    expected = {p.relative_to(ROOT / "src").as_posix() for p in sources}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert f"{NAME}.dist-info/licenses/LICENSE" in names
    assert b"\nDescription-Content-Type: text/markdown\n" in metadata
    assert metadata.endswith((ROOT / "README.md").read_bytes())


def test_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    place = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    packages = Path(sysconfig.get_path("purelib", vars=place))
    venv.create(tmp_path / "venv", with_pip=True)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    python = tmp_path / "venv/bin/python"
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    run([python, *install], tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1")
    code = "import keras, tensorflow_ranger as r; print(r.__file__, r.__version__)"
    clean = {"KERAS_BACKEND": keras.config.backend(), "PYTHONPATH": ""}
    file, version = run([python, "-c", code], tmp_path, **clean).split()
    assert Path(file).is_relative_to(packages)
    assert NAME.endswith(version)
    assert version in run([tmp_path / "venv/bin/tensorflow-ranger", "info"], tmp_path, **clean)


def test_changelog_of_the_release_has_every_fragment():
    draft = run([sys.executable, "-m", "towncrier", "build", "--draft"], ROOT)
    fragments = [p for p in ROOT.glob("changelog.d/*.md") if p.name != "template.md"]
    for fragment in fragments:
        assert fragment.read_text(encoding="utf-8").split("\n")[0] in draft, fragment.name
