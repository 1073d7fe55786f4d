"""How Sphinx builds the documentation: ``make docs``."""

import functools
from importlib.metadata import version as _version
from pathlib import Path as _Path

import jupytext as _jupytext

# Keras, before the library: autodoc imports what it documents.
import keras  # noqa: F401
from docutils.nodes import SkipNode as _SkipNode
from docutils.utils.math.latex2mathml import tex2mathml as _tex2mathml

project = "tensorflow-ranger"
author = "The tensorflow-ranger authors"
copyright = f"2026, {author}"
version = release = _version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"{project} {release}"

# Docstrings are written for people who read the source: `name` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"

_REPOSITORY = _Path(__file__).resolve().parent.parent


def setup(app):
    """Read the pages under notebooks/ from the notebooks, and set formulas without a network."""
    app.connect("source-read", _read_notebook)
    # Before napoleon, which indents the text of sections.
    app.connect("autodoc-process-docstring", _set_formulas_as_code, priority=400)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_visit_math, None),
        block_renderers=(functools.partial(_visit_math, as_block=True), None),
    )


def _visit_math(translator, node, as_block=False):
    """Write a formula as MathML, which browsers show without a script from a network."""
    formula = _tex2mathml(node.astext(), as_block=as_block)
    # Room for what is higher than its line, which furo scrolls.
    translator.body.append(
        f'<div style="padding-block: 0.5em">{formula}</div>' if as_block else formula
    )
    raise _SkipNode


def _set_formulas_as_code(app, what, name, obj, options, lines):
    """Mark indented formulas, which reStructuredText would set as quotations."""
    for index in range(len(lines) - 1, 1, -1):
        before, blank, line = lines[index - 2 : index + 1]
        if line.startswith("    ") and not blank and before and not before.startswith(" "):
            lines[index:index] = [".. code-block:: text", ""]


def _read_notebook(app, page, source):
    if not page.startswith("notebooks/"):
        return
    path = _REPOSITORY / f"{page}.py"
    app.env.note_dependency(path)
    cells = _jupytext.read(path).cells
    text = "\n\n".join(
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in cells
    )
    # A notebook links to its neighbours and to docs/; so does its page.
    for other in sorted(_REPOSITORY.glob("notebooks/*.py")):
        text = text.replace(f"]({other.name})", f"]({other.stem}.md)")
    source[0] = (
        text.replace("](../docs/", "](../")
        + f"\n\nThis page is a notebook, kept as text: `notebooks/{path.name}`. "
        f"`jupytext --to ipynb` makes an `.ipynb` of it.\n"
    )
