"""PyTorch: a process group."""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist


class Engine:
    """Processes that train one model together.

    Args:
        processes: Integer >= 1; how many there are.
        process: Number of this one.
        addresses: Sequence of ``host:port``. The first is where the processes meet, unless
            ``MASTER_ADDR`` says so.
        local: Number of this process among those of its host, or None.
        timeout: Seconds after which a peer that does not answer is lost.

    Attributes:
        devices: How many devices of this process train.
        own_rows: Whether each process is fed its own rows of a batch, or all of them the whole.
        equal_rows: Whether each process must be fed as many rows.
    """

    own_rows = True
    equal_rows = False
    devices = 1

    def __init__(self, processes, process, addresses, local, timeout):
        self._joined = processes > 1
        if not self._joined:
            return
        if torch.cuda.is_available() and local is not None:
            torch.cuda.set_device(local)
        url = "env://" if "MASTER_ADDR" in os.environ else f"tcp://{addresses[0]}"
        wait = datetime.timedelta(seconds=timeout)
        store, _, _ = next(dist.rendezvous(url, process, processes, timeout=wait))
        # torchrun keeps its store over restarts, with the addresses of the processes that are gone.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"restart_{restart}", store)
        dist.init_process_group(store=store, world_size=processes, rank=process, timeout=wait)

    def scope(self):
        """Return the context in which the model to train is built, or loaded."""
        return contextlib.nullcontext()

    def apart(self):
        """Return a context in which models are built and run by this process alone."""
        return contextlib.nullcontext()

    def meet(self):
        """Wait for the other processes."""
        if self._joined:
            dist.barrier()

    def close(self):
        """Leave the other processes."""
        if self._joined:
            dist.destroy_process_group()

    def is_lost_peer(self, error):
        """Return whether `error` says that another process is gone."""
        return self._joined and (
            isinstance(error, dist.DistError)
            or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
        )
