"""How Sphinx builds the documentation: ``make docs``."""

from importlib.metadata import version as _version

# Keras, before the library: autodoc imports what it documents.
import keras  # noqa: F401

project = "tensorflow-ranger"
author = "The tensorflow-ranger authors"
copyright = f"2026, {author}"
version = release = _version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
html_title = f"{project} {release}"

# Docstrings are written for people who read the source: `name` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
