"""The command line as users know it. A change here needs a line in the changelog."""

import dataclasses
import importlib.metadata
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer

from tensorflow_ranger_cli.app import app
from tensorflow_ranger_cli.errors import CommandError
from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.tasks import digits
from tests.application import runs
from tests.marks import first

pytestmark = first


def commands():
    group: Any = typer.main.get_command(app)
    return group.commands


def options(command):
    return {name: parameter.default for parameter in command.params for name in parameter.opts}


def test_names_of_commands_and_options():
    assert set(commands()) == {"train", "tasks", "predict", "plan", "report", "info"}
    group: Any = typer.main.get_command(app)
    completion = {"--install-completion": None, "--show-completion": None}
    assert options(group) == {"--version": False, **completion}
    assert options(commands()["info"]) == {"--json": False}
    assert options(commands()["tasks"]) == {"--json": False}
    assert options(commands()["predict"]) == {"path": None, "inputs": None, "--backend": None}
    assert options(commands()["report"]) == {"directories": None, "--output": None}
    assert options(commands()["plan"]) == {
        "path": None,
        "--batch-size": None,
        "--memory-limit": None,
        "--length": None,
        "--backend": None,
        "--json": False,
    }
    defaults = options(commands()["train"])
    assert defaults == {
        "task": "digits",
        "--output": None,
        "--optimizer": "sgd",
        "--lookahead": False,
        "--centralize": False,
        "--accumulation-steps": 4,
        "--batch-size": 32,
        "--microbatch": None,
        "--memory-limit": None,
        "--trim-padding": False,
        "--noise-scale": False,
        "--epochs": 10,
        "--learning-rate": None,
        "--backend": None,
        "--seed": 0,
        "--resume": False,
        "--force": False,
        "--quiet": False,
    }


def test_the_script_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="tensorflow-ranger")
    assert script.load() is main


@pytest.mark.parametrize("package", ["tensorflow_ranger", "tensorflow_ranger_cli"])
def test_the_packages_run_as_modules(package):
    result = subprocess.run(
        [sys.executable, "-m", package, "--epoch"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    lines = result.stderr.splitlines(keepends=True)
    assert lines[-1] == "Error: No such option: --epoch (see tensorflow-ranger --help)\n"
    # Python imports the library, and it Keras, to find the file that starts the application.
    assert package == "tensorflow_ranger" or len(lines) == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments, capsys):
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "Usage: tensorflow-ranger [OPTIONS] COMMAND" in output
    for command in commands():
        assert command in output


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    version = importlib.metadata.version("tensorflow-ranger")
    assert capsys.readouterr().out == f"tensorflow-ranger {version}\n"


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("tensorflow-ranger tr", ["train"]),
        ("tensorflow-ranger train rev", ["reviews", "reviews-multitask"]),
        ("tensorflow-ranger train --mem", ["--memory-limit"]),
        ("tensorflow-ranger plan --backend t", ["tensorflow", "torch"]),
        ("tensorflow-ranger train --optimizer ranger", ["ranger", "ranger21"]),
        ("tensorflow-ranger report ru", []),  # the shell completes paths itself
    ],
)
def test_a_shell_completes(line, completed, capsys, monkeypatch):
    monkeypatch.setenv("_TENSORFLOW_RANGER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert capsys.readouterr().out.split() == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell, capsys, monkeypatch):
    monkeypatch.setenv("_TENSORFLOW_RANGER_COMPLETE", f"source_{shell}")
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert f"complete_{shell}" in capsys.readouterr().out


def test_the_page_names_every_command_and_option():
    page = (Path(__file__).resolve().parents[2] / "docs/command_line.md").read_text("utf-8")
    for name, command in commands().items():
        section = page.partition(f"\n## `{name}`")[2].partition("\n## ")[0]
        for option in options(command):
            if option.startswith("--"):
                assert f"`{option}" in section, (name, option)


def test_help_names_every_option_and_its_default(capsys):
    assert main(["train", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for option in options(commands()["train"]):
        assert option in output
    for name in ("sgd", "adamw", "radam", "ranger", "ranger21"):
        assert f"{name} (" in output
    for default in (
        "sgd",
        "32",
        "0.03 for sgd",
        "0.003 for ranger21",
        "KERAS_BACKEND, else tensorflow",
        "runs/digits",
    ):
        assert default in output


@pytest.mark.parametrize("name", ["", *commands()])
def test_help_reads_well_in_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*name.split(), "--help"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 80
        assert not line.endswith("-"), "a name is broken at its hyphen"


def test_the_options_of_train_have_the_headings_of_the_page(capsys):
    assert main(["train", "--help"]) == 0
    output = capsys.readouterr().out
    headings = re.findall(r"(?m)^(\w.*):$", output)
    expected = ["Batch and memory", "Optimizer", "Training", "Results"]
    assert headings == ["Arguments", *expected, "Other options"]
    page = (Path(__file__).resolve().parents[2] / "docs/command_line.md").read_text("utf-8")
    for heading in expected:
        below = [text.partition(f"\n{heading}:\n")[2].strip("\n") for text in (output, page)]
        sections = [text.partition("\n\n")[0] for text in below]
        helped, told = (re.findall(r"(?m)^(?:  |\| `)(--[a-z-]+)", each) for each in sections)
        assert helped
        assert set(helped) == set(told), heading


def test_help_does_not_wait_for_keras():
    loaded = "print({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    result = runs.process("train", "--help", after=loaded)
    assert result.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--epoch", "3"], "No such option: --epoch"),
        (["train", "runs"], "TASK must be one of digits, "),
        (["train", "digits", "runs"], "unexpected extra argument"),
        (["train", "Digits"], "got Digits"),
        (["train", "--epochs"], "--epochs"),
        (["info", "--backend", "jax"], "No such option: --backend"),
        (["train", "--epochs", "-1"], "--epochs must be an integer >= 1: got -1"),
        (["train", "--epochs", "many"], "--epochs must be an integer >= 1: got many"),
        (["train", "--batch-size", "0"], "--batch-size must be an integer >= 1: got 0"),
        (["train", "--batch-size", "1.5"], "--batch-size must be an integer >= 1: got 1.5"),
        (["train", "--accumulation-steps", "0"], "--accumulation-steps must be an integer >= 1"),
        (["train", "--seed", "-1"], "--seed must be an integer >= 0 and <= 4294967295: got -1"),
        (["train", "--seed", "4294967296"], "got 4294967296"),
        (["train", "--learning-rate", "0"], "--learning-rate must be a finite number > 0: got 0"),
        (["train", "--learning-rate", "nan"], "got nan"),
        (["train", "--learning-rate", "inf"], "got inf"),
        (["train", "--learning-rate", "fast"], "got fast"),
        (["train", "--backend", "numpy"], "--backend must be one of tensorflow, jax, torch"),
        (["train", "--backend", "theano"], "got theano"),
        (["train", "--microbatch", "0"], "--microbatch must be an integer >= 1, or auto: got 0"),
        (["train", "--microbatch", "Auto"], "or auto: got Auto"),
        (
            ["train", "--microbatch", "64"],
            "--microbatch must be <= --batch-size, which is 32: got 64",
        ),
        (
            ["train", "--microbatch", "8", "--accumulation-steps", "4"],
            "--accumulation-steps must be 1 beside --microbatch, which makes one update of each "
            "batch: got 4. Leave it out",
        ),
        (
            ["train", "--memory-limit", "4GB"],
            "--memory-limit is for --microbatch auto: got no --microbatch",
        ),
        (["train", "--memory-limit", "4GB", "--microbatch", "8"], "auto: got --microbatch 8"),
        (["train", "--memory-limit", "lots"], "--memory-limit must be at least 1 MB"),
        (["train", "--memory-limit", "inf"], "such as '4GB' or '512MiB': got 'inf'"),
        (["train", "--memory-limit", "4", "--microbatch", "auto"], "got '4', which is 4 bytes"),
        (["train", "--resume", "--force"], "--force replaces it: got both. Leave one out"),
        (["train", "digit"], "got digit. Did you mean digits?"),
        (["train", "--backend", "Torch"], "got Torch. Did you mean torch?"),
        (["train", "--epoch", "3"], "Possible options: --epochs"),
        (
            ["train", "--optimizer", "ranger", "--lookahead"],
            "--lookahead is built into ranger: got both. Leave --lookahead out",
        ),
        (["train", "--optimizer", "ranger21", "--lookahead"], "built into ranger21"),
        (["train", "--optimizer", "ranger", "--centralize"], "--centralize is built into ranger:"),
        (["train", "--optimizer", "Ranger21", "--centralize"], "built into Ranger21: got both"),
        (
            ["train", "--noise-scale", "--accumulation-steps", "1"],
            "--noise-scale compares the micro-batches of an update: got one, of 32 images. Give a",
        ),
        (["train", "--noise-scale", "--microbatch", "32"], "got one, of 32 images"),
        (["train", "--trim-padding"], "such as reviews: got digits. Leave --trim-padding out"),
        (
            ["train", "reviews", "--trim-padding", "--accumulation-steps", "4"],
            "cuts it: got it without --microbatch, which cuts the batch",
        ),
        (
            ["train", "reviews", "--trim-padding", "--noise-scale"],
            "got it with --noise-scale, which needs samples in random order",
        ),
        (["report"], "Missing argument"),
        (
            ["report", "absent"],
            "DIR must be the directory of a run: got absent, without checkpoint",
        ),
        (["train", "--lookahead", "yes"], "TASK must be one of"),
        (["train", "--epoch", "3"], "(see tensorflow-ranger train --help)"),
        (["plan", "--batch-size", "8"], "Missing argument"),
        (["plan", "model.keras"], "Missing option '--batch-size'"),
        (["plan", "model.keras", "--batch-size", "8"], "model.keras must be a Keras model file"),
        (["plan", ".", "--batch-size", "8"], ". must be a Keras model file: got none"),
        (["plan", "model.keras", "--batch-size", "0"], "--batch-size must be an integer >= 1"),
        (
            ["plan", "model.keras", "--batch-size", "8", "--memory-limit", "0"],
            "such as '4GB' or '512MiB': got '0', which is 0 bytes",
        ),
        (
            ["plan", "model.keras", "--batch-size", "8", "--length", "0"],
            "--length must be an integer >= 1: got 0",
        ),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    runs.assert_one_error(capsys, message)
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line(tmp_path, capsys, monkeypatch):
    def diverged():
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("3 micro-batches were left out", stacklevel=2)
        raise CommandError("no digits")

    monkeypatch.setattr(digits, "TASK", dataclasses.replace(digits.TASK, load=diverged))
    assert runs.run("train", "--output", str(tmp_path / "run")) == 1
    assert capsys.readouterr().err == "Warning: 3 micro-batches were left out\nError: no digits\n"


def test_without_typer_the_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["train"]) == 1
    runs.assert_one_error(capsys, 'pip install "tensorflow-ranger[examples]"')
