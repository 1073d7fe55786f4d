"""The troubleshooting quotes messages as the library writes them."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]


def messages():
    """Yield the text of every error of the library, with ... for what is filled in."""
    for path in (ROOT / "src/tensorflow_ranger").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                yield from (text_of(argument) for argument in node.exc.args)


def text_of(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "..."


def quoted():
    """Return what the page quotes from errors of the library."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    section = page.partition("## Errors of the library")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \| ", section, re.MULTILINE)
    return [quote.strip("`") for cell in cells for quote in cell.split("` / `")]


@pytest.mark.parametrize("quote", quoted())
def test_a_quoted_message_is_one_of_the_library(quote):
    assert any(quote in message for message in messages())


def test_the_page_quotes_many():
    assert len(quoted()) > 50
