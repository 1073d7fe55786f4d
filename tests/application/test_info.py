"""``tensorflow-ranger info``."""

import importlib.metadata
import json
import platform

import keras
import numpy as np

from tensorflow_ranger_cli import frameworks, keras_backend
from tensorflow_ranger_cli.main import main
from tests.application import runs
from tests.marks import first


def lines(output):
    return dict(line.split(":", 1) for line in output.splitlines())


def test_info_says_what_is_there(capsys):
    assert main(["info"]) == 0
    told = {name: value.strip() for name, value in lines(capsys.readouterr().out).items()}
    assert told["tensorflow-ranger"] == importlib.metadata.version("tensorflow-ranger")
    assert told["Keras"] == keras.__version__
    assert told["NumPy"] == np.__version__
    assert told["Python"] == platform.python_version()
    active = keras.config.backend()
    assert told[active] == keras_backend.installed_backends()[active]
    assert told["backend"] == f"{active} {told[active]}"
    assert told["devices"] == ", ".join(frameworks.devices())
    assert {"tensorflow", "jax", "torch"} <= set(told)


def test_info_in_json_is_one_document(capsys):
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"]["Python"] == platform.python_version()
    assert set(told["versions"]) >= {"tensorflow-ranger", "Keras", "tensorflow", "jax", "torch"}
    assert told["backend"] == keras.config.backend()
    assert told["devices"] == frameworks.devices()


@first
def test_info_prints_versions_before_it_says_that_the_backend_is_missing():
    result = runs.process("info", before="sys.modules['jax'] = None", KERAS_BACKEND="jax")
    assert result.returncode == 1
    assert lines(result.stdout)["Keras"].strip() == keras.__version__
    assert "backend" not in lines(result.stdout)
    assert result.stderr.startswith("Error: the backend jax is not installed")
    assert len(result.stderr.splitlines()) == 1
