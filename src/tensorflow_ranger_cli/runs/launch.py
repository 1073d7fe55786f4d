"""What started this process: a user, or a launcher that starts several which train together."""

import contextlib
import dataclasses
import json

from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.options import integer
from tensorflow_ranger_cli.silence import silent_stderr, silent_stdout

TIMEOUT = 60  # seconds without an answer after which a process counts as lost
KERAS = "KERAS_DISTRIBUTION_"


@dataclasses.dataclass(frozen=True)
class Launch:
    """This process's place in the run.

    Attributes:
        launcher: What started the processes, or None for one that runs alone.
        processes: How many there are.
        process: The number of this one. Process 0 writes.
        addresses: Tuple of ``host:port``: process 0's, and those of the others where known.
        local: Number of this process among those that the launcher started on this host, or None
            where there are no others.
        restarts: How often the launcher has started the run again.
    """

    launcher: str | None = None
    processes: int = 1
    process: int = 0
    addresses: tuple[str, ...] = ()
    local: int | None = None
    restarts: int = 0

    def in_words(self, devices):
        """Return one line that says who trains and who writes, or None for a single device.

        Args:
            devices: How many devices of each process train.
        """
        if self.processes > 1:
            each = f", {devices} devices each" if devices > 1 else ""
            return f"{self.processes} processes of {self.launcher}{each}; process 0 writes the run"
        return f"{devices} devices of one process" if devices > 1 else None


def detect(environment):
    """Return the `Launch` that environment variables tell of.

    Args:
        environment: Mapping such as `os.environ`.

    Raises:
        UsageError: Variables are missing, or not what they should be.
    """
    for read in (_torchrun, _keras_distribution, _tf_config):
        launch = read(environment)
        if launch is not None and launch.processes > 1:
            return launch
    return Launch(restarts=_restarts(environment))


@contextlib.contextmanager
def joined(launch, backend):
    """Join the other processes of the run and the devices of this one.

    Args:
        launch: `Launch`.
        backend: Name of the backend that Keras runs on.

    Returns:
        A context whose value is the backend's `Engine`.

    Raises:
        UsageError: The launcher does not tell the addresses that the backend needs.
        CommandError: A process did not come, or was lost on the way.
    """
    if backend == "tensorflow" and 1 < launch.processes != len(launch.addresses):
        raise UsageError(
            f"TensorFlow needs the address of every process: got {launch.processes} processes of "
            f"{launch.launcher} on several hosts. Set TF_CONFIG on each of them"
        )
    from tensorflow_ranger_cli.frameworks import Engine

    try:
        # The frameworks tell both streams whom they have met.
        with silent_stdout(), silent_stderr():
            engine = Engine(
                launch.processes, launch.process, launch.addresses, launch.local, TIMEOUT
            )
    except Exception as error:
        if launch.processes == 1:
            raise
        raise CommandError(
            f"process {launch.process} did not meet the others within {TIMEOUT} s: {error}. "
            f"Start all {launch.processes} of {launch.launcher}, with the same addresses"
        ) from error
    try:
        yield engine
        engine.meet()  # process 0 is the last to be ready
    except Exception as error:
        if not engine.is_lost_peer(error):
            raise
        raise CommandError(
            f"process {launch.process} lost another of the {launch.processes} processes: {error}. "
            "Start them again with --resume"
        ) from error
    engine.close()


def _torchrun(environment):
    if "WORLD_SIZE" not in environment:
        return None
    processes = _integer(environment, "WORLD_SIZE", 1)
    if processes == 1:
        return None
    name = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "WORLD_SIZE"
    host = _required(environment, "MASTER_ADDR", "WORLD_SIZE")
    # The launcher itself listens on MASTER_PORT.
    port = 1 + _integer(environment, "MASTER_PORT", 0, beside="WORLD_SIZE")
    local_processes = _integer(environment, "LOCAL_WORLD_SIZE", 1, default=1)
    on_one_host = local_processes == processes
    addresses = tuple(f"{host}:{port + i}" for i in range(processes if on_one_host else 1))
    cluster = _cluster(environment)
    return Launch(
        launcher=name,
        processes=processes,
        process=_integer(environment, "RANK", 0, processes - 1, beside="WORLD_SIZE"),
        addresses=cluster if len(cluster) == processes else addresses,
        local=_integer(environment, "LOCAL_RANK", 0, default=0) if local_processes > 1 else None,
        restarts=_restarts(environment),
    )


def _keras_distribution(environment):
    number = f"{KERAS}NUM_PROCESSES"
    if number not in environment:
        return None
    processes = _integer(environment, number, 1)
    if processes == 1:
        return None
    addresses = _required(environment, f"{KERAS}JOB_ADDRESSES", number)
    process = _integer(environment, f"{KERAS}PROCESS_ID", 0, processes - 1, beside=number)
    return Launch("keras.distribution", processes, process, tuple(addresses.split(",")))


def _tf_config(environment):
    addresses = _cluster(environment)
    if len(addresses) < 2:
        return None
    config = json.loads(environment["TF_CONFIG"])
    task = config.get("task")
    try:
        address = config["cluster"][task["type"]][int(task["index"])]
        process = addresses.index(address)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UsageError(
            "TF_CONFIG must name this process's task, the chief or a worker of its cluster: "
            f"got {task}"
        ) from error
    return Launch("TF_CONFIG", len(addresses), process, addresses)


def _cluster(environment):
    """Return the addresses of the workers that TF_CONFIG names, the chief's first."""
    text = environment.get("TF_CONFIG") or "{}"
    try:
        cluster = json.loads(text).get("cluster", {})
        return (*cluster.get("chief", ()), *cluster.get("worker", ()))
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            'TF_CONFIG must be JSON such as {"cluster": {"worker": ["host:port", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}: got {text}'
        ) from error


def _restarts(environment):
    return _integer(environment, "TORCHELASTIC_RESTART_COUNT", 0, default=0)


def _required(environment, name, beside):
    if name not in environment:
        raise UsageError(f"{name} must be set where {beside} is: got none. Set both, or neither")
    return environment[name]


def _integer(environment, name, minimum, maximum=None, *, default=None, beside=None):
    if default is not None and name not in environment:
        return default
    text = environment[name] if beside is None else _required(environment, name, beside)
    return integer(name, minimum, maximum)(text)
