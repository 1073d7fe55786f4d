"""Ctrl-C where the KeyboardInterrupt that Python raises at once would do harm, or be lost."""

import contextlib
import os
import signal

from tensorflow_ranger_cli.errors import Stopped


@contextlib.contextmanager
def ending_the_process():
    """Return a context in which Ctrl-C ends the process at once, whatever catches errors.

    Frameworks that are interrupted amid their import crash, or catch the error and go on.
    """
    stderr = os.dup(2)  # whatever is put in its place within the context

    def end(*_):
        os.write(stderr, f"{Stopped()}\n".encode())
        os._exit(Stopped.exit_code)

    try:
        with _handled(end):
            yield
    finally:
        os.close(stderr)


@contextlib.contextmanager
def remembered():
    """Return a context whose value is a function that raises KeyboardInterrupt after Ctrl-C.

    It is raised at once, too; but in a destructor, such as those that garbage collection calls,
    Python drops it.
    """
    pressed = []

    def handle(*_):
        pressed.append(True)
        raise KeyboardInterrupt

    def raise_again():
        if pressed:
            raise KeyboardInterrupt

    with _handled(handle):
        yield raise_again


@contextlib.contextmanager
def _handled(handler):
    # Jobs in the background of a script ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
