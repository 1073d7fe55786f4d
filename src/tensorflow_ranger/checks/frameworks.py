"""Tensors and variables must be of the framework that Keras runs on."""

import keras

from tensorflow_ranger.backend.frameworks import framework_of


def require_active_framework(name, values, other):
    """Check that none of `values` belongs to a framework that Keras does not run on.

    Args:
        name: What the values are called.
        values: List of anything.
        other: What to give instead, if `KERAS_BACKEND` is right.

    Raises:
        TypeError: One does.
    """
    active = keras.config.backend()
    for value in values:
        framework = framework_of(value)
        if framework not in (None, active):
            raise TypeError(
                f"{name} must be of {active}, the framework that Keras runs on: got "
                f"{type(value).__name__} of {framework}. Set the environment variable "
                f"KERAS_BACKEND={framework} before Keras is imported, or give {other}."
            )
