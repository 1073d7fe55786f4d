"""Finds the Python blocks of a Markdown page and says which backend each is for.

After ``python`` the opening fence may name backends, when the block is for those only, say
``continues``, when it goes on where the block before it ended, and ``clients``, when it needs the
packages of tests/clients, where it is run:

    ```python jax
    ```python continues
    ```python clients
"""

import dataclasses
import re
from pathlib import Path

BACKENDS = {"tensorflow", "jax", "torch"}

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Block:
    """One block of a page, with the line its code begins at."""

    path: Path
    line: int
    words: list[str]
    code: str

    def is_for(self, backend):
        """Return whether the block runs on `backend`."""
        named = BACKENDS.intersection(self.words)
        return not named or backend in named


def blocks_of(path):
    """Return the fenced blocks of the page at `path`, whatever their language."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            path,
            text.count("\n", 0, match.start("code")) + 1,
            match["info"].split(),
            match["code"],
        )
        for match in _FENCE.finditer(text)
    ]


def programs_of(path, backend, clients=False):
    """Return the page's programs for `backend`: a list of lists of blocks run one after another.

    Args:
        path: Path of the page.
        backend: Name of the backend.
        clients: Whether to return those that need the packages of tests/clients, or the others.

    Raises:
        ValueError: A block says something else than a backend, ``continues`` or ``clients``.
    """
    programs = []
    for block in blocks_of(path):
        if block.words[:1] != ["python"]:
            continue
        unknown = set(block.words) - BACKENDS - {"python", "continues", "clients"}
        if unknown:
            raise ValueError(
                f"{path.name}:{block.line}: a Python block may name backends or say continues or "
                f"clients: got {sorted(unknown)}."
            )
        if not block.is_for(backend) or ("clients" in block.words) != clients:
            continue
        if "continues" in block.words:
            programs[-1].append(block)
        else:
            programs.append([block])
    return programs
