"""What the engines of all backends have in common."""

import contextlib


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
