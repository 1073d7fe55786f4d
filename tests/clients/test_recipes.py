"""The recipes that need packages of others run as they stand."""

from pathlib import Path

import keras
import pytest

from tests.docs.blocks import programs_of

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs/recipes").glob("*.md"))

<<<<<<< .merge_file_fMIlRy
PROGRAMS = [
    (page, program)
=======
PROGRAMS = {
    page.stem: program
>>>>>>> .merge_file_t3jjtj
    for page in PAGES
    for program in programs_of(page, keras.config.backend(), clients=True)
}


def name_of(program):
    return f"{program[0].path.stem}:{program[0].line}"


pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),  # KerasTuner's oracle
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]


def test_there_are_recipes_for_clients():
<<<<<<< .merge_file_fMIlRy
    assert {page.stem for page, _ in PROGRAMS} == {"keras_tuner", "lora"}


@pytest.mark.parametrize("program", [program for _, program in PROGRAMS], ids=name_of)
=======
    assert set(PROGRAMS) == {"keras_tuner", "lora"}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
>>>>>>> .merge_file_t3jjtj
def test_recipe_runs(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in program:
        exec(compile("\n" * (block.line - 1) + block.code, str(block.path), "exec"), namespace)
