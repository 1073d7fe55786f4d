"""Contexts in which nothing is written to a stream of this process, not even by C code."""

import contextlib
import os
import sys


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
