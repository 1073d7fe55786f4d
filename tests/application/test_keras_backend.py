"""Choosing and importing a backend."""

import os

import keras
import pytest

from tensorflow_ranger.backend import arrays
from tensorflow_ranger_cli import keras_backend, silence
from tensorflow_ranger_cli.errors import UsageError
from tests.application import runs
from tests.marks import first

pytestmark = first


def test_installed_backends_have_the_versions_they_say_themselves():
    installed = keras_backend.installed_backends()
    assert installed[keras.config.backend()] == arrays.version()
    assert set(installed) <= set(keras_backend.BACKENDS)


def test_an_absent_backend_is_not_listed(monkeypatch):
    monkeypatch.setattr(
        keras_backend.metadata, "packages_distributions", lambda: {"numpy": ["numpy"]}
    )
    assert keras_backend.installed_backends() == {}


def test_an_unknown_backend_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    with pytest.raises(UsageError, match=r"KERAS_BACKEND must be one of .* got 'theano'"):
        keras_backend.import_keras()


def test_the_nearest_backend_is_suggested(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "pytorch")
    with pytest.raises(UsageError, match=r"got 'pytorch'.* Did you mean torch\?"):
        keras_backend.import_keras()


def test_a_backend_that_is_not_installed_says_what_to_install(tmp_path):
    directory = tmp_path / "run"
    result = runs.process(
        "train", "--backend", "jax", "--output", directory, before="sys.modules['jax'] = None"
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: the backend jax is not installed")
    assert 'pip install "tensorflow-ranger[jax]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_is_written_to_stderr_is_silenced_only_within(capfd):
    os.write(2, b"before ")
    with silence.silent_stderr():
        os.write(2, b"within ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_keras_imported_too_early_is_named(tmp_path):
    """As by a task's file that imports it outside functions."""
    current = keras.config.backend()
    other = "jax" if current != "jax" else "torch"
    options = ("--backend", other, "--output", tmp_path / "run")
    done = runs.process("train", *options, before="import keras")
    assert done.returncode == 1
    assert f"should be {other}, but something imported Keras on {current}" in done.stderr
