"""Tasks of other packages, as installed: each test has real distributions on the path."""

import csv
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tensorflow_ranger_cli.tasks import registry
from tests.application import runs
from tests.docs.blocks import blocks_of
from tests.marks import first

pytestmark = first

ROOT = Path(__file__).resolve().parents[3]


def install(folder, package, tasks, **modules):
    """Put a distribution into `folder`, as pip would.

    Args:
        folder: `pathlib.Path` of a directory on the path.
        package: Name of the distribution.
        tasks: Dict of entry points, values by names.
        **modules: Text of each module.
    """
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    metadata = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    header = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    (metadata / "METADATA").write_text(header, encoding="utf-8")
    lines = [f"[{registry.GROUP}]", *(f"{name} = {value}" for name, value in tasks.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def process(folder, *arguments):
    """Run the command line with `folder` on the path; return the `CompletedProcess`."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return runs.process(*arguments, PYTHONPATH=path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return `install` for packages that this process finds, too."""

    def install_here(package, tasks, **modules):
        install(tmp_path, package, tasks, **modules)
        registry._declared.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install_here
    registry._declared.cache_clear()
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_documented_package_makes_a_task(tmp_path):
    project, module = blocks_of(ROOT / "docs/tasks.md")
    assert project.words == ["toml"]
    declared = tomllib.loads(project.code)["project"]
    tasks = declared["entry-points"][registry.GROUP]
    install(tmp_path, declared["name"], tasks, tiny_digits=module.code)
    listed = process(tmp_path, "tasks")
    assert "\ntiny-digits " in listed.stdout, listed.stderr
    directory = tmp_path / "run"
    options = ("--output", directory, "--epochs", "6")
    done = process(tmp_path, "train", "tiny-digits", *options)
    assert done.returncode == 0, done.stderr
    *_, last = csv.DictReader((directory / "history.csv").read_text("utf-8").splitlines())
    assert float(last["val_accuracy"]) > 0.8


def test_only_the_task_that_is_asked_for_is_imported():
    code = (
        "import sys; from tensorflow_ranger_cli.tasks import registry; registry.find('digits'); "
        "print(*sorted(name for name in sys.modules if name.startswith('tensorflow_ranger')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    imported = result.stdout.split()
    assert "tensorflow_ranger_cli.tasks.digits" in imported
    assert not {"tensorflow_ranger", "tensorflow_ranger_cli.tasks.mnist"} & set(imported)


@pytest.mark.parametrize(
    ("value", "text", "message"),
    [
        (
            "absent_module:TASK",
            "",
            "cannot be imported from absent_module:TASK: got ModuleNot",
        ),
        ("mine:TASK", "", "cannot be imported from mine:TASK: got AttributeError"),
        ("mine:TASK", "raise OSError('no disk')", "got OSError, no disk. Upgrade mine, or uninst"),
        ("mine:TASK", "TASK = 3", "must name a Task: got int from mine:TASK"),
        (
            "mine:TASK",
            "from tensorflow_ranger_cli.tasks.digits import TASK",
            "must have its task's name: got a task named digits from mine:TASK",
        ),
    ],
)
def test_what_is_no_task_is_named_with_its_package(value, text, message, installed, capsys):
    installed("mine", {"own": value}, mine=text)
    assert runs.run("train", "own") == 1
    runs.assert_one_error(capsys, "own", "package mine", message)
    assert runs.run("train", "owm") == 2
    runs.assert_one_error(capsys, "Did you mean own?")
    assert registry.find("digits").name == "digits"  # which need not suffer from it


def test_two_packages_with_one_name_are_named(installed, capsys):
    for package in ("mine", "yours"):
        installed(package, {"own": f"{package}:TASK"})
    assert runs.run("train", "own") == 1
    runs.assert_one_error(capsys, "the task own must be declared by one package", "mine", "yours")


def test_an_installation_without_tasks_says_how_to_repair_it(capsys, monkeypatch):
    monkeypatch.setattr(registry, "_declared", dict)
    assert runs.run("train") == 1
    runs.assert_one_error(capsys, "no installed package declares a task", "pip install")
