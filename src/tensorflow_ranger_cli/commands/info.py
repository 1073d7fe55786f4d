"""``tensorflow-ranger info``."""

import platform
from importlib import metadata

from tensorflow_ranger_cli.keras_backend import BACKENDS, import_keras, installed_backends


def info():
    """Print versions, the active backend and its devices."""
    installed = installed_backends()
    _line("tensorflow-ranger", metadata.version("tensorflow-ranger"))
    _line("Keras", metadata.version("keras"))
    _line("NumPy", metadata.version("numpy"))
    _line("Python", platform.python_version())
    for name in BACKENDS:
        _line(name, installed.get(name, "not installed"))
    active = import_keras()
    from tensorflow_ranger_cli import frameworks

    _line("backend", f"{active} {installed.get(active, '')}".rstrip())
    _line("devices", ", ".join(frameworks.devices()))


def _line(name, value):
    print(f"{name + ':':<19}{value}")
