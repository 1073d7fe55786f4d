"""Attributes of Keras' modules that are others for a while. Read in Keras 3.12 to 3.15."""

import contextlib
import threading


class Replaced:
    """Attributes that are other values while a scope is open in any thread.

    Args:
        replacements: Function that returns a list of tuples ``(owner, name, value)``.
    """

    def __init__(self, replacements):
        self._replacements = replacements
        self._lock = threading.Lock()
        self._open_scopes = 0
        self._before = []

    @contextlib.contextmanager
    def scope(self):
        """Inside, the attributes are replaced; after the last scope they are Keras' own again."""
        with self._lock:
            self._open_scopes += 1
            if self._open_scopes == 1:
                for owner, name, value in self._replacements():
                    self._before.append((owner, name, getattr(owner, name)))
                    setattr(owner, name, value)
        try:
            yield
        finally:
            with self._lock:
                self._open_scopes -= 1
                while not self._open_scopes and self._before:
                    setattr(*self._before.pop())
