"""The recipes that need packages of others run as they stand."""

from pathlib import Path

import keras
import pytest

from tests.docs.blocks import programs_of

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs/recipes").glob("*.md"))

PROGRAMS = {
    page.stem: program
    for page in PAGES
    for program in programs_of(page, keras.config.backend(), clients=True)
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),  # KerasTuner's oracle
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]


def test_there_are_recipes_for_clients():
    assert set(PROGRAMS) == {"keras_tuner", "lora"}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_recipe_runs(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in program:
        exec(compile("\n" * (block.line - 1) + block.code, str(block.path), "exec"), namespace)
