"""TensorFlow: the tape of the backward pass, for what must not be recorded on it."""

import contextlib
import contextvars

#: The `tf.GradientTape` that records the present forward pass, or None.
recorder = contextvars.ContextVar("recorder", default=None)


@contextlib.contextmanager
def recorded_by(tape):
    """Inside, let `recorder` have the `tf.GradientTape` that records."""
    token = recorder.set(tape)
    try:
        yield
    finally:
        recorder.reset(token)
