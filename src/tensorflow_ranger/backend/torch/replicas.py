"""PyTorch: the processes of the default process group."""

import contextlib
import os

import keras
import torch
import torch.distributed as dist

from tensorflow_ranger.backend.torch.arrays import run_if as run_if

SUMS_METRICS = False  # Keras' metrics know nothing of other replicas

_BUCKET = 25 * 2**20  # bytes; as much is copied to be sent at once


def count():
    """Return the number of replicas whose gradients are to be summed here."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def has_several(variables):
    """Return whether several replicas train `variables`."""
    return count() > 1


def meet_in_step(variables):
    """Return whether several replicas train within one compiled step: here each is a process."""
    return False


def in_lockstep(variables):
    """Return whether processes must run the same program: here they only meet for sums."""
    return False


def copies(variables):
    """Return how many copies of `variables` there are, each with a value of its own."""
    return count()


def index():
    """Return the number of this replica."""
    return dist.get_rank()


def loss_divisor():
    """Return what Keras divides a mean loss by because of the replicas."""
    return 1


def mismatch(variables):
    """Return what would make each process train a copy of its own, or None."""
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked > 1 and count() == 1:
        return (
            f"WORLD_SIZE is {asked}, but torch.distributed has no process group: each process "
            "would train a model of its own. Call torch.distributed.init_process_group() before "
            "the model is built, or unset WORLD_SIZE."
        )
    return None


@torch.no_grad()
def sum_over(tensors):
    """Return the tensors summed over the replicas, in collectives of whole buckets."""
    sums = [torch.empty_like(tensor) for tensor in tensors]
    for places in _buckets(tensors):
        flat = torch.cat([tensors[place].detach().reshape(-1) for place in places])
        dist.all_reduce(flat)
        parts = flat.split([tensors[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            sums[place] = part.view(tensors[place].shape)
    return sums


@torch.no_grad()
def gather(tensors, copies=1):
    """Return the rows of all replicas, in the order of the replicas.

    Args:
        tensors: List of tensors whose leading axes are the rows of this replica.
        copies: How many replicas have the same rows: here 1.

    Returns:
        Tuple ``(tensors, start, total)``: this replica's first row among `total`.
    """
    rows = len(tensors[0])
    counts = [torch.zeros((), dtype=torch.int64, device=tensors[0].device) for _ in range(count())]
    dist.all_gather(counts, torch.as_tensor(rows, device=tensors[0].device))
    counts = [int(each) for each in counts]
    # One collective for all: the bytes of a row beside one another, and as many rows everywhere.
    flat = [tensor.detach().reshape(rows, -1).contiguous().view(torch.uint8) for tensor in tensors]
    widths = [each.shape[1] for each in flat]
    own = torch.zeros(max(counts), sum(widths), dtype=torch.uint8, device=tensors[0].device)
    own[:rows] = torch.cat(flat, 1)
    everything = [torch.empty_like(own) for _ in counts]
    dist.all_gather(everything, own)
    everything = torch.cat([each[:n] for each, n in zip(everything, counts, strict=True)])
    gathered = [
        part.contiguous().view(tensor.dtype).reshape(-1, *tensor.shape[1:])
        for part, tensor in zip(everything.split(widths, 1), tensors, strict=True)
    ]
    return gathered, sum(counts[: index()]), sum(counts)


def _buckets(tensors):
    buckets = []
    open_buckets = {}
    for place, tensor in enumerate(tensors):
        key = tensor.dtype, tensor.device
        size, bucket = open_buckets.get(key, (_BUCKET, None))
        if bucket is None or size + tensor.nbytes > _BUCKET:
            size, bucket = 0, []
            buckets.append(bucket)
        bucket.append(place)
        open_buckets[key] = size + tensor.nbytes, bucket
    return buckets


def skip_reduction(optimizer):
    """Return a context in which `optimizer` takes gradients as sums: on PyTorch it always does."""
    return contextlib.nullcontext()


@torch.no_grad()
def begin_alike(variables):
    """Assign the first replica's values to the variables of all. Every replica must call it."""
    for variable in variables:
        value = variable.value.data
        dist.broadcast(value.view(torch.uint8) if value.dtype == torch.bool else value, src=0)


@torch.no_grad()
def are_alike(variables):
    """Return whether all replicas hold the same values. Every replica must call it."""
    own = torch.stack([variable.value.detach().double().sum() for variable in variables])
    return torch.allclose(sum_over([own])[0], own * count(), rtol=1e-12, atol=0)


def total(variable):
    """Return the sum of the replicas' values of `variable` as a NumPy array.

    Every replica must call it.
    """
    return keras.ops.convert_to_numpy(sum_over([variable.value])[0])
