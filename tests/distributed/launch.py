"""Starts the processes of a distributed run on this machine, and gathers what they write."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras

TIMEOUT = 900  # seconds for all the cases of a run: four times what they take on a busy machine


def run(engine, folder, *names):
    """Train the cases `names`; every process must succeed and writes its results to `folder`."""
    worker = ["-m", "tests.distributed.worker", engine, str(folder), *names]
    if engine == "torch_processes":
        wait([start(torchrun(*worker))])
        return
    joined = {"jax_processes": keras_distribution, "tensorflow_workers": tf_config}
    places = joined[engine]() if engine in joined else [{}]
    wait([start(worker, **place) for place in places])


def results(folder):
    """Return the results that each process has written to `folder`."""
    files = sorted(Path(folder).glob("[0-9].json"))
    return [json.loads(file.read_text()) for file in files]


def wait(processes):
    """Wait for the processes; if one fails, end the others and raise with its messages."""
    deadline = time.monotonic() + TIMEOUT
    while any(process.poll() is None for process in processes):
        failed = [process for process in processes if process.poll()]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.kill()
    outputs = [process.communicate()[0] for process in processes]
    if time.monotonic() > deadline:
        outputs.append(f"The processes took more than {TIMEOUT} seconds, and were ended.")
    if any(process.returncode for process in processes):
        raise AssertionError("\n---\n".join(output[-4000:] for output in outputs))


def free_ports(count):
    """Return numbers of ports that nobody listens to."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(command, stderr=subprocess.STDOUT, /, **variables):
    """Start a command with the environment `variables` beside the usual ones."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": keras.config.backend(),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def torchrun(*command):
    """Return the command by which torchrun starts two processes of a Python command."""
    (port,) = free_ports(1)
    options = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return ["-m", "torch.distributed.run", *options, *command]


def keras_distribution():
    """Return the environment variables of each of two processes that `keras.distribution` joins."""
    (port,) = free_ports(1)
    return [
        {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(process),
        }
        for process in range(2)
    ]


def tf_config():
    """Return the environment variables of each of two workers that `TF_CONFIG` joins."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    return [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks]
