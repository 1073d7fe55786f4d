"""Keras and its backends: which are installed, and importing the chosen one."""

import contextlib
import importlib
import os
import sys
from importlib import metadata

import tensorflow_ranger
from tensorflow_ranger.cli import spelling
from tensorflow_ranger.cli.errors import CommandError, UsageError

BACKENDS = ("tensorflow", "jax", "torch")


def installed_backends():
    """Return the versions of the installed backends by name, without importing any."""
    # TensorFlow goes by several distribution names (tensorflow, tensorflow-cpu, ...).
    distributions = metadata.packages_distributions()
    return {
        name: metadata.version(distributions[name][0]) for name in BACKENDS if name in distributions
    }


def import_keras(backend=None):
    """Import Keras on `backend`, without the frameworks' startup messages.

    Args:
        backend: Name of a backend. None leaves the choice to Keras: ``KERAS_BACKEND``, then
            its configuration file, then TensorFlow.

    Returns:
        The name of the backend that Keras runs on.

    Raises:
        UsageError: ``KERAS_BACKEND`` names no backend of this library.
        CommandError: The backend is not installed or cannot be imported, or Keras was imported on
            another before.
    """
    if backend is not None:
        os.environ["KERAS_BACKEND"] = backend
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen and chosen not in BACKENDS:
        raise UsageError(
            f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}: got {chosen!r}. "
            f"Set it to one of them, or unset it{spelling.nearest(chosen, BACKENDS)}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        # TensorFlow writes to the descriptor before any setting of its own can silence it.
        with silent_stderr():
            import keras

            # Now that Keras has its backend, the package imports its public names. That registers
            # the optimizers for saving, and fails for a backend that is not ours.
            importlib.reload(tensorflow_ranger)
    except ModuleNotFoundError as error:
        if error.name not in BACKENDS:
            raise
        installed = ", ".join(installed_backends()) or "none"
        raise CommandError(
            f"the backend {error.name} is not installed: got {installed}. "
            f'Run: pip install "tensorflow-ranger[{error.name}]"'
        ) from error
    except ImportError as error:
        raise CommandError(str(error)) from error
    if backend not in (None, keras.config.backend()):
        raise CommandError(
            f"the backend should be {backend}, but something imported Keras on "
            f"{keras.config.backend()} before. In the file of a task, import it inside functions"
        )
    return keras.config.backend()


@contextlib.contextmanager
def silent_stderr():
    """Return a context in which nothing in this process writes to stderr."""
    with _silent(2):
        yield


@contextlib.contextmanager
def silent_stdout():
    """Return a context in which nothing in this process writes to stdout."""
    sys.stdout.flush()
    with _silent(1):
        try:
            yield
        finally:
            sys.stdout.flush()  # what waits to be written belongs in here


@contextlib.contextmanager
def _silent(descriptor):
    saved = os.dup(descriptor)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(null)
        os.close(saved)
