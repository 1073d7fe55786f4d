"""A context variable that has a value inside a `with` block, and its former one after it."""

import contextlib


@contextlib.contextmanager
def holding(variable, value):
    """Inside, in this thread, let the `contextvars.ContextVar` `variable` hold `value`."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
