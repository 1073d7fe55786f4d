"""``tensorflow-ranger info``."""

import json
import platform
from importlib import metadata

from tensorflow_ranger_cli import options
from tensorflow_ranger_cli.keras_backend import BACKENDS, import_keras, installed_backends


def info(as_json: options.Json = False):
    """Print versions, the active backend and its devices."""
    installed = installed_backends()
    versions = {
        "tensorflow-ranger": metadata.version("tensorflow-ranger"),
        "Keras": metadata.version("keras"),
        "NumPy": metadata.version("numpy"),
        "Python": platform.python_version(),
        **{name: installed.get(name) for name in BACKENDS},
    }
    if not as_json:
        for name, version in versions.items():
            _print_line(name, version or "not installed")
    backend = import_keras()
    from tensorflow_ranger_cli import frameworks

    devices = frameworks.devices()
    if as_json:
        print(json.dumps({"versions": versions, "backend": backend, "devices": devices}, indent=2))
        return
    _print_line("backend", f"{backend} {versions[backend] or ''}".rstrip())
    _print_line("devices", ", ".join(devices))


def _print_line(name, value):
    print(f"{name + ':':<19}{value}")
