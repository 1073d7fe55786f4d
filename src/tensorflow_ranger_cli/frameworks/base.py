"""What the modules of all backends have in common."""

import contextlib
from pathlib import Path

_PROCESS = Path("/proc/self")


class Engine:
    """Processes and devices that train one model together.

    Args:
        processes: Integer >= 1; how many processes there are.
        process: Number of this one.
        addresses: Sequence of ``host:port``, one for each process as far as they are known. The
            first is that of process 0.
        local: Number of this process among those of its host, which gives it the GPU of that
            number, or None, which gives it all.
        timeout: Seconds after which a peer that does not answer is lost.

    Attributes:
        devices: How many devices of this process train.
        own_rows: Whether each process is fed its own rows of a batch, or all of them the whole.
        equal_rows: Whether each process must be fed as many rows.
    """

    devices = 1
    own_rows = True
    equal_rows = False

    def scope(self) -> contextlib.AbstractContextManager:
        """Return the context in which the model to train is built, or loaded."""
        return contextlib.nullcontext()

    def apart(self) -> contextlib.AbstractContextManager:
        """Return a context in which models are built and run by this process alone."""
        return contextlib.nullcontext()

    def close(self):
        """Leave the other processes."""


def reset_peak_memory():
    """Begin a new peak for `peak_memory`."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the whole run
        return


def peak_memory():
    """Return the most bytes that this process held since `reset_peak_memory`.

    None where the operating system does not tell.
    """
    try:
        status = (_PROCESS / "status").read_text()
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
