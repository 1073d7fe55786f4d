"""JAX: `keras.distribution` over the devices of all processes."""

import contextlib
import inspect

import jax
import keras
from jax.experimental import multihost_utils

from tensorflow_ranger_cli.frameworks import base


def devices():
    """Return the names of the devices that JAX computes on."""
    return [str(device) for device in jax.devices()]


def reset_peak_memory():
    """Begin a new peak for `peak_memory`, where that is the process's: JAX keeps a GPU's."""
    base.reset_peak_memory()


def peak_memory():
    """Return the most bytes in use: of the GPU since JAX began, else of the process."""
    told = jax.local_devices()[0].memory_stats()
    return told["peak_bytes_in_use"] if told else base.peak_memory()


class Engine(base.Engine):
    """Joins by `jax.distributed`, and sets Keras' distribution."""

    equal_rows = True

    def __init__(self, processes, process, addresses, local, timeout):
        self._joined = processes > 1
        if self._joined:
            # Keras' own `initialize` does this without the timeouts.
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            if hasattr(jax.config, "jax_enable_preemption_service"):
                # It takes SIGTERM for itself, and a launcher waits in vain for the process to end.
                jax.config.update("jax_enable_preemption_service", False)
            jax.distributed.initialize(
                addresses[0],
                processes,
                process,
                local_device_ids=None if local is None else [local],
                initialization_timeout=timeout,
                **_timeouts(timeout),
            )
        self.devices = jax.local_device_count()
        self._distribution = None
        if jax.device_count() > 1:
            self._distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
            keras.distribution.set_distribution(self._distribution)
        self.meet()

    @contextlib.contextmanager
    def apart(self):
        """Return a context in which models are built and run by this process alone."""
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(self._distribution)

    def meet(self):
        """Wait for the other processes."""
        if self._joined:
            multihost_utils.sync_global_devices("tensorflow_ranger")

    def close(self):
        """Leave the other processes."""
        if self._distribution is not None:
            keras.distribution.set_distribution(None)
        if self._joined:
            jax.distributed.shutdown()

    def is_lost_peer(self, error):
        """Return whether `error` says that another process is gone."""
        words = ("gloo", "coordination", "heartbeat", "connection")
        return (
            self._joined
            and isinstance(error, jax.errors.JaxRuntimeError | ValueError)
            and any(word in str(error).lower() for word in words)
        )


def _timeouts(timeout):
    # JAX before 0.8 has no names for them.
    known = inspect.signature(jax.distributed.initialize).parameters
    wanted = {"heartbeat_timeout_seconds": timeout, "shutdown_timeout_seconds": timeout}
    return {name: value for name, value in wanted.items() if name in known}
