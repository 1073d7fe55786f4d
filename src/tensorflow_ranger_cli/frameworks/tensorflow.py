"""TensorFlow: a strategy over the GPUs of one process, or over the workers of a cluster."""

import contextlib

import tensorflow as tf

from tensorflow_ranger_cli.frameworks import base


def devices():
    """Return the names of the devices that TensorFlow computes on."""
    return [device.name for device in tf.config.list_logical_devices()]


def reset_peak_memory():
    """Begin a new peak for `peak_memory`."""
    for gpu in tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(gpu.name)
    base.reset_peak_memory()


def peak_memory():
    """Return the most bytes in use since `reset_peak_memory`: the GPU's, else the process's."""
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_memory_info(gpus[0].name)["peak"]
    return base.peak_memory()


class Engine(base.Engine):
    """Builds models under a strategy, if there is more than one device."""

    own_rows = False

    def __init__(self, processes, process, addresses, local, timeout):
        gpus = tf.config.list_physical_devices("GPU")
        self._strategy = None
        self._joined = processes > 1
        if self._joined:
            if gpus and local is not None:
                gpus = [gpus[local]]
                tf.config.set_visible_devices(gpus, "GPU")
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
                tf.distribute.cluster_resolver.SimpleClusterResolver(
                    tf.train.ClusterSpec({"worker": list(addresses)}),
                    task_type="worker",
                    task_id=process,
                    rpc_layer="grpc",
                ),
                tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout),
            )
        elif len(gpus) > 1:
            self._strategy = tf.distribute.MirroredStrategy()
        self.devices = max(1, len(gpus))
        self.meet()

    def scope(self):
        """Return the context in which the model to train is built, or loaded."""
        return contextlib.nullcontext() if self._strategy is None else self._strategy.scope()

    def meet(self):
        """Wait for the other processes."""
        strategy = self._strategy
        if strategy is not None and self._joined:

            @tf.function(autograph=False)
            def met():
                return strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.0)), axis=None)

            met().numpy()

    def is_lost_peer(self, error):
        """Return whether `error` says that another process is gone."""
        errors = tf.errors
        return self._joined and isinstance(
            error,
            errors.UnavailableError
            | errors.AbortedError
            | errors.CancelledError
            | errors.DeadlineExceededError,
        )
