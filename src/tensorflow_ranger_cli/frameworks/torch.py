"""PyTorch: a process group, and the memory of CUDA."""

import datetime
import os

import torch
import torch.distributed as dist

from tensorflow_ranger_cli.frameworks import base


def devices():
    """Return the names of the devices that PyTorch computes on."""
    accelerators = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [*accelerators, "cpu"]


def reset_peak_memory():
    """Begin a new peak for `peak_memory`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    base.reset_peak_memory()


def peak_memory():
    """Return the most bytes in use since `reset_peak_memory`: the GPU's, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return base.peak_memory()


class Engine(base.Engine):
    """Joins the default process group, at ``MASTER_ADDR`` where it is set."""

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
