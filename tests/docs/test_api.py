"""The reference has every public name."""

from pathlib import Path

import tensorflow_ranger

API = Path(__file__).resolve().parents[2] / "docs/api.md"


def test_every_public_name_has_an_entry():
    names = {
        name
        for name, value in vars(tensorflow_ranger).items()
        if not name.startswith("_") and getattr(value, "__name__", None) == name
    }
    documented = {
        line.rpartition(" tensorflow_ranger.")[2]
        for line in API.read_text(encoding="utf-8").splitlines()
        if line.startswith(".. auto")
    }
    assert names
    assert names <= documented
