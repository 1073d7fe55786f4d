"""The reference has every public name."""

from pathlib import Path

import tensorflow_ranger

API = Path(__file__).resolve().parents[2] / "docs/api.md"


def test_every_public_name_has_an_entry():
    names = names_of(tensorflow_ranger) | {
        f"{module}.{name}"
        for module in ("callbacks", "testing")
        for name in names_of(getattr(tensorflow_ranger, module)) - names_of(tensorflow_ranger)
    }
    documented = {
        line.partition(" tensorflow_ranger.")[2]
        for line in API.read_text(encoding="utf-8").splitlines()
        if line.startswith(".. auto")
    }
    assert names >= {"callbacks.NoiseScale", "testing.check_exact"}
    assert names <= documented


def names_of(module):
    """Return the names of functions and classes of `module`, which modules in it are not."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__name__", None) == name
    }
