"""Methods of one object that are others for a while."""

import contextlib


@contextlib.contextmanager
def methods_replaced(owner, **methods):
    """Return a context in which `owner` has `methods`, past Keras' tracker; then its own again.

    Args:
        owner: A Keras model or optimizer.
        **methods: Functions by the names of methods.
    """
    own = vars(owner)
    before = {name: own[name] for name in methods if name in own}
    own.update(methods)
    try:
        yield
    finally:
        for name in methods:
            own.pop(name, None)
        own.update(before)
