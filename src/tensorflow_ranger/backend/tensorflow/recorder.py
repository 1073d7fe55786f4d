"""TensorFlow: the tape of the backward pass, for what must not be recorded on it."""

import contextvars

from tensorflow_ranger.backend.scoped import holding

#: The `tf.GradientTape` that records the present forward pass, or None.
recorder = contextvars.ContextVar("recorder", default=None)


def recorded_by(tape):
    """Return a context in which `recorder` has the `tf.GradientTape` that records."""
    return holding(recorder, tape)
