"""The engines, as their users start them, and how each lets its collectives be counted."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import re
from collections.abc import Callable

SIZES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "float": 4, "int32": 4}


@dataclasses.dataclass
class Here:
    """This process's place in the run.

    Attributes:
        process: Its number.
        processes: How many there are.
        feeds: How many processes feed rows of their own.
        scope: Function that returns the context in which models are built.
        counted: Function that returns a context in which calls are counted.
        collectives: Function ``(model, batch) -> (updates, sizes)``: the bytes of each sum over the
            replicas for so many updates, from a trained model and its first batch's arrays.
    """

    process: int = 0
    processes: int = 1
    feeds: int = 1
    replicas: int = 2
    scope: Callable = contextlib.nullcontext
    counted: Callable = contextlib.nullcontext
    collectives: Callable = lambda model, batch: (1, [])


@contextlib.contextmanager
def alone():
    """One process with one device."""
    yield Here(replicas=1)


@contextlib.contextmanager
def torch_processes():
    """Processes of torchrun."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    sizes = []
    all_reduce = dist.all_reduce

    def counting(tensor, *arguments, **settings):
        sizes.append(tensor.nbytes)
        return all_reduce(tensor, *arguments, **settings)

    @contextlib.contextmanager
    def counted():
        sizes.clear()
        dist.all_reduce = counting
        yield
        dist.all_reduce = all_reduce

    def collectives(model, batch):
        return int(model.optimizer.iterations.value), list(sizes)

    processes = dist.get_world_size()
    yield Here(
        dist.get_rank(),
        processes,
        processes,
        processes,
        counted=counted,
        collectives=collectives,
    )
    dist.destroy_process_group()


@contextlib.contextmanager
def _jax(devices, distribution, process_count=1):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
        f"--xla_force_host_platform_device_count={devices}"
    )
    import jax
    import keras

    if process_count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize()
    keras.distribution.set_distribution(distribution(keras.distribution))

    def collectives(model, batch):
        from tensorflow_ranger.backend.jax.sharded_step import Rows

        if not hasattr(model, "microbatch_plan"):
            return 1, []  # Keras' own step, in which XLA sums as it sees fit
        state = model._get_jax_state(
            trainable_variables=True,
            non_trainable_variables=True,
            optimizer_variables=True,
            metrics_variables=True,
        )
        ((_, step),) = model.make_train_function.__self__.maker.made.values()
        data = keras.tree.map_structure(Rows, batch)
        return 1, all_reduces(step.text(state, data, model.microbatch_plan.chosen))

    yield Here(
        jax.process_index(),
        process_count,
        process_count,
        keras.distribution.distribution().num_model_replicas,
        collectives=collectives,
    )
    if process_count > 1:
        jax.distributed.shutdown()


def jax_data_parallel():
    """Two devices of one process."""
    return _jax(2, lambda api: api.DataParallel())


def jax_processes():
    """Two devices in each of two processes."""
    return _jax(2, lambda api: api.DataParallel(auto_shard_dataset=False), 2)


def jax_model_parallel():
    """Two replicas, each on two devices."""

    def distribution(api):
        layouts = api.LayoutMap(api.DeviceMesh((2, 2), ["batch", "model"]))
        layouts[".*dense.*kernel"] = ("model", None)
        return api.ModelParallel(layout_map=layouts, batch_dim_name="batch")

    return _jax(4, distribution)


def all_reduces(text):
    """Return the bytes of each all-reduce over the batch's axis, those in loops as infinite."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    sizes, computation = [], ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            computation = line.split()[0].lstrip("%")
        found = re.search(r"= (.*?) all-reduce(-start)?\(", line)
        if found and "psum" in line:
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
            size = sum(
                SIZES[d] * math.prod(map(int, filter(None, s.split(",")))) for d, s in shapes
            )
            sizes.append(math.inf if computation in bodies else size)
    return sizes


@contextlib.contextmanager
def _tensorflow(strategy_of):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    strategy = strategy_of(tf)
    sizes = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def counting(self, op, tensors, *arguments, **settings):
        if not tf.get_static_value(tf.convert_to_tensor(self.replica_id_in_sync_group)):
            shapes = [(t.dtype, t.shape) for t in tf.nest.flatten(tensors)]
            sizes.append(sum(dtype.size * shape.num_elements() for dtype, shape in shapes))
        return all_reduce(self, op, tensors, *arguments, **settings)

    @contextlib.contextmanager
    def counted():
        sizes.clear()
        tf.distribute.ReplicaContext.all_reduce = counting
        yield
        tf.distribute.ReplicaContext.all_reduce = all_reduce

    def collectives(model, batch):
        maker = getattr(model.make_train_function.__self__, "maker", None)
        if maker is None:
            return 1, list(sizes)  # Keras' own step: the calls that its trace made
        ((_, step),) = maker.made.values()
        *_, last = step._per_size.values()
        functions = last._list_all_concrete_functions()
        return 1, collective_ops(functions[-1])

    alone = '{"task": {"index": 0}, "cluster": {"worker": [""]}}'
    config = json.loads(os.environ.get("TF_CONFIG", alone))
    process, processes = config["task"]["index"], len(config["cluster"]["worker"])
    yield Here(process, processes, 1, 2, strategy.scope, counted, collectives)


def tensorflow_mirrored():
    """Two logical devices of one process."""

    def strategy(tf):
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [device] * 2
        )
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    return _tensorflow(strategy)


def tensorflow_workers():
    """Processes that `TF_CONFIG` names."""
    return _tensorflow(lambda tf: tf.distribute.MultiWorkerMirroredStrategy())


def collective_ops(function):
    """Return the bytes of each sum of the first device, and an infinity for what is in a loop.

    Lists of looked-up rows are gathered and not summed.
    """
    graph = function.graph.as_graph_def()
    loops = {
        node.attr["body"].func.name
        for nodes in (graph.node, *(f.node_def for f in graph.library.function))
        for node in nodes
        if node.op in ("While", "StatelessWhile")
    }
    sizes = [
        _bytes(function.graph, node)
        for node in graph.node
        if _crosses(node) and node.op.startswith("CollectiveReduce")
    ]
    inside = [
        node
        for f in graph.library.function
        if f.signature.name in loops
        for node in f.node_def
        if _crosses(node)
    ]
    return sizes + [math.inf] * len(inside)


def _crosses(node):
    return node.op.startswith("Collective") and not node.device.endswith(":1")


def _bytes(graph, node):
    tensor = graph.get_operation_by_name(node.name).inputs[0]
    return tensor.dtype.size * tensor.shape.num_elements()


ENGINES = {
    "alone": alone,
    "torch_processes": torch_processes,
    "jax_data_parallel": jax_data_parallel,
    "jax_processes": jax_processes,
    "jax_model_parallel": jax_model_parallel,
    "tensorflow_mirrored": tensorflow_mirrored,
    "tensorflow_workers": tensorflow_workers,
}
