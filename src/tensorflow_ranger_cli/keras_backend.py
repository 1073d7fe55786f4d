"""The choice of Keras' backend: which are installed, and importing Keras on one of them."""

import os
from importlib import metadata

from tensorflow_ranger_cli import interrupts, spelling
from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.silence import silent_stderr

BACKENDS = ("tensorflow", "jax", "torch")


def installed_backends():
    """Return the versions of the installed backends by name, without importing any."""
    # TensorFlow goes by several distribution names (tensorflow, tensorflow-cpu, ...).
    distributions = metadata.packages_distributions()
    return {
        name: metadata.version(distributions[name][0]) for name in BACKENDS if name in distributions
    }


def import_keras(backend=None):
    """Import Keras on `backend`, and the library, without the frameworks' startup messages.

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
        with interrupts.ending_the_process(), silent_stderr():
            import keras

            # This registers the optimizers for saving, and fails for a backend that is not ours.
            import tensorflow_ranger  # noqa: F401
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
