"""Print what one sum of gradients per update saves over one per micro-batch.

    python -m benchmarks.scaling [--rounds 8]
    python -m benchmarks.scaling --table

Two processes on this machine train a network of 4.2 million parameters on PyTorch, and sum over
Gloo and 127.0.0.1. Rows run in turn, update by update, and end together in all processes; ratios
are medians of the ratios within a round. `--table` prints what the model says of larger machines.
"""

import argparse
import functools
import gc
import os
import platform
import socket
import statistics
import subprocess
import sys
import time

from benchmarks.ring import print_table, update

STEPS = 8  # micro-batches of an update
NONE, OURS, EACH, DDP = (
    "no sum: every process alone",
    "microbatch: one sum",
    "a sum per micro-batch",
    "DistributedDataParallel, without no_sync",
)
NUMBER, GRADIENTS = "an all-reduce of one number", "an all-reduce of all gradients"


def rows():
    """Return functions by their names, each of which makes an update, and the parameters."""
    import keras
    import torch
    import torch.distributed as dist

    import tensorflow_ranger as ranger
    from benchmarks.problems import BATCH, PROBLEMS

    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = (torch.as_tensor(array) for array in PROBLEMS["MLP 4x1024"]()[1:])

    def compiled():
        model = PROBLEMS["MLP 4x1024"]()[0]
        model.compile(keras.optimizers.Adam(1e-6), loss=loss_of)
        return model

    def train(network, model, sums=False):
        weights = [variable.value for variable in model.trainable_variables]
        total = torch.zeros(())
        model.zero_grad()
        for part, labels in zip(x.chunk(STEPS), y.chunk(STEPS), strict=True):
            (loss_of(labels, network(part)) / STEPS).backward()
            if sums:
                found = torch.cat([weight.grad.reshape(-1) for weight in weights])
                dist.all_reduce(found)
                total = total + found
                model.zero_grad()
        gradients = [weight.grad for weight in weights]
        if sums:
            parts = total.split([weight.numel() for weight in weights])
            gradients = [p.view(w.shape) for p, w in zip(parts, weights, strict=True)]
        with torch.no_grad():
            model.optimizer.apply(gradients, model.trainable_variables)

    alone, ours, each, inside = (compiled() for _ in range(4))
    ranger.microbatch(ours, BATCH // STEPS)
    wrapped = torch.nn.parallel.DistributedDataParallel(inside)
    return {
        NONE: lambda: train(alone, alone),
        OURS: lambda: ours.train_on_batch(x, y),
        EACH: lambda: train(each, each, sums=True),
        DDP: lambda: train(wrapped, inside),
    }, ours.count_params()


def timed(rounds):
    """Return the seconds and bytes of each round by the names of rows, and the parameters."""
    import torch
    import torch.distributed as dist

    sent, all_reduce = [0], dist.all_reduce

    def counting(tensor, *arguments, **settings):
        sent[0] += tensor.nbytes
        return all_reduce(tensor, *arguments, **settings)

    dist.all_reduce = counting
    functions, parameters = rows()
    for name, size in ((NUMBER, 1), (GRADIENTS, parameters)):
        functions[name] = functools.partial(all_reduce, torch.zeros(size))
    times = {name: [] for name in functions}
    for _ in range(rounds + 2):
        for name, function in functions.items():
            dist.barrier()
            sent[0], start = 0, time.perf_counter()
            function()
            own = sent[0]
            dist.barrier()
            times[name].append((time.perf_counter() - start, own))
    return {name: values[2:] for name, values in times.items()}, parameters  # two do not count


def measure(rounds):
    """Train, as one of the processes; process 0 prints the table."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    times, parameters = timed(rounds)
    if dist.get_rank() == 0:
        report(times, dist.get_world_size(), parameters)
    gc.collect()  # DistributedDataParallel deadlocks if it is freed after its process group
    dist.destroy_process_group()


def report(times, replicas, parameters):
    """Print what was measured beside what the model makes of its parts."""
    import keras
    import torch

    print(
        f"## torch {torch.__version__}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {replicas} processes over Gloo\n"
    )
    seconds = {name: statistics.median(t for t, _ in values) for name, values in times.items()}
    latency = seconds[NUMBER] / (2 * (replicas - 1))
    each = seconds[GRADIENTS]
    bandwidth = 2 * (replicas - 1) / replicas * 4 * parameters / (each - seconds[NUMBER])
    micro_batch = seconds[NONE] / STEPS
    print("| | ms an update | MB sent | of microbatch |\n| --- | ---: | ---: | ---: |")
    for name in (NONE, OURS, EACH, DDP):
        ratios = (t / one for (t, _), (one, _) in zip(times[name], times[OURS], strict=True))
        # DistributedDataParallel sums in C++, where nobody counts.
        sent = "" if name == DDP else f"{times[name][-1][1] / 1e6:.1f}"
        cells = f"{1e3 * seconds[name]:.0f} | {sent} | {statistics.median(ratios):.2f}"
        print(f"| {name} | {cells} |")
    one, many = (update(STEPS, micro_batch, sums, each) for sums in (1, STEPS))
    print(
        f"\nt {1e3 * micro_batch:.1f} ms, a {1e6 * latency:.0f} us, B {bandwidth / 1e9:.2f} GB/s, "
        f"{parameters:,} parameters: the model says {many / one:.2f}."
    )


def main():
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--rounds", type=int, default=8, help="updates per row (default: 8)")
    parser.add_argument("--table", action="store_true", help="print the model's table")
    options = parser.parse_args()
    if options.table:
        print_table()
    elif "RANK" in os.environ:
        measure(options.rounds)
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
        command = [*launcher, "--master-port", port, "-m", "benchmarks.scaling", *sys.argv[1:]]
        variables = {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", *command], check=True, env=os.environ | variables)


if __name__ == "__main__":
    main()
