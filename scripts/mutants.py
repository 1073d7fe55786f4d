"""Plant faults in the library, one at a time, and see whether the suite finds them.

    python scripts/mutants.py                                # all mutants, on PyTorch
    python scripts/mutants.py --backend jax --only whole     # those whose names hold "whole"

`mutants.toml` lists the mutants: a file of the library, a text that stands in it once, what takes
its place, and the tests that are to fail. Each runs on a copy of the sources. Prints a line for
each; the exit code is 1 if one survives or could not be planted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = Path(__file__).with_suffix(".toml")
SECONDS = 900  # a fault may also make a test hang

TESTS_FAILED = 1  # pytest's exit status


def main(arguments=None):
    """Run the mutants; return 0 if all die."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--only", default="", help="a part of the names")
    options = parser.parse_args(arguments)
    mutants = tomllib.loads(MUTANTS.read_text(encoding="utf-8"))
    chosen = {
        name: mutant
        for name, mutant in mutants.items()
        if options.only in name and options.backend in mutant.get("backends", [options.backend])
    }
    survivors = 0
    for name, mutant in chosen.items():
        outcome = outcome_of(mutant, options.backend)
        survivors += outcome != "dies"
        print(f"{outcome:10} {name}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} die on {options.backend}")
    return 1 if survivors else 0


def outcome_of(mutant, backend):
    """Return "dies", "survives", or what kept the mutant from being planted."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "src"
        shutil.copytree(ROOT / "src", sources, ignore=shutil.ignore_patterns("__pycache__"))
        file = sources / "tensorflow_ranger" / mutant["file"]
        text = file.read_text(encoding="utf-8")
        if text.count(mutant["old"]) != 1:
            return f"stands {text.count(mutant['old'])} times"
        file.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": f"{sources}{os.pathsep}{ROOT}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        try:
            run = subprocess.run(
                [*command, *mutant["tests"]],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "dies"
    return {TESTS_FAILED: "dies", 0: "survives"}.get(run.returncode, f"status {run.returncode}")


if __name__ == "__main__":
    sys.exit(main())
