"""The README's first commands lead from an empty environment to a report."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[2]

# pip looks at what the suite's environment holds, and downloads nothing.
OFFLINE = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as "no isolation"
    "PIP_NO_DEPS": "1",
    "PIP_NO_INDEX": "1",
}


def first_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## From a terminal\n")[2].partition("From a clone")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    return [line.replace('".[', f'"{ROOT}[') for line in lines]


@pytest.mark.thorough
def test_first_commands_lead_to_a_report(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    place = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    packages = Path(sysconfig.get_path("purelib", vars=place))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    environment = {
        **os.environ,
        **OFFLINE,
        "KERAS_BACKEND": keras.config.backend(),
        "PATH": f"{tmp_path / 'venv/bin'}{os.pathsep}{os.environ['PATH']}",
    }
    commands = first_commands()
    assert 1 < len(commands) < 5
    for command in commands:
        subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,  # progress bars
        )
    page = (tmp_path / "runs/digits/report.html").read_text(encoding="utf-8")
    assert "<th>updates</th><td>313</td>" in page
    assert (packages / "tensorflow_ranger_cli/main.py").exists()
