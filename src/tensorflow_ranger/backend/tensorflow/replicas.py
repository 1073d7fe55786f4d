"""TensorFlow: the replicas of a `tf.distribute.Strategy`."""

import json
import os

import tensorflow as tf

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.tensorflow import arrays as local
from tensorflow_ranger.backend.tensorflow.strategies import is_multi_worker, strategy_of

SUMS_METRICS = True  # Keras' metrics are summed over the replicas when they are read


def has_several(variables):
    """Return whether several replicas train `variables`."""
    return strategy_of(variables) is not None


def count():
    """Return the number of replicas whose gradients are to be summed here."""
    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_replica_context().num_replicas_in_sync


def meet_in_step(variables):
    """Return whether several replicas train `variables` within one compiled step."""
    return has_several(variables)


def in_lockstep(variables):
    """Return whether several processes must run the same program, with the same collectives."""
    strategy = strategy_of(variables)
    return strategy is not None and is_multi_worker(strategy)


def copies(variables):
    """Return how many copies of `variables` there are, each with a value of its own."""
    strategy = strategy_of(variables)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def index():
    """Return the number of this replica."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def loss_divisor():
    """Return what Keras divides a mean loss by because of the replicas."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def mismatch(variables):
    """Return what would make each process train a copy of its own, or None."""
    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    asked = len(cluster.get("worker", [])) + len(cluster.get("chief", []))
    strategy = strategy_of(variables)
    if asked > 1 and (strategy is None or strategy.num_replicas_in_sync < asked):
        return (
            f"TF_CONFIG names {asked} workers, but the model was built for one. Build and compile "
            "it within tf.distribute.MultiWorkerMirroredStrategy().scope(), or unset TF_CONFIG."
        )
    return None


def sum_over(tensors):
    """Return the tensors summed over the replicas, in one call of the strategy.

    Of lists of rows (`tf.IndexedSlices`) the sum is one list after the other.
    """
    context = tf.distribute.get_replica_context()
    sums = context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))
    return [
        each if isinstance(t, tf.IndexedSlices) else tf.ensure_shape(each, t.shape)
        for each, t in zip(sums, tensors, strict=True)
    ]


def gather(tensors, copies=1):
    """Return the rows of all replicas, in the order of the replicas.

    Args:
        tensors: List of tensors whose leading axes are the rows of this replica.
        copies: How many replicas have the same rows: here 1.

    Returns:
        Tuple ``(tensors, start, total)``: this replica's first row among `total`.
    """
    context = tf.distribute.get_replica_context()
    tensors = [tf.identity(each) for each in tensors]  # what is fed names no device
    counts = context.all_gather(tf.shape(tensors[0])[:1], axis=0)
    gathered = [_all_gathered(context, tensor) for tensor in tensors]
    start = tf.reduce_sum(counts[: context.replica_id_in_sync_group])
    return gathered, start, tf.reduce_sum(counts)


def _all_gathered(context, tensor):
    if tensor.dtype == tf.bool:  # such as masks, which no collective operation takes
        return tf.cast(_all_gathered(context, tf.cast(tensor, "int32")), "bool")
    return tf.ensure_shape(context.all_gather(tensor, axis=0), [None, *tensor.shape[1:]])


def run_if(predicate, function, variables):
    """Call `function` on every replica where the scalar bool `predicate` holds, which all agree on.

    The condition stands outside the replicas: inside it, they could not meet for a sum.
    """
    strategy = strategy_of(variables)
    if strategy is None:
        local.run_if(predicate, function, variables)
        return

    def run_on_all(strategy, predicate):
        first = strategy.experimental_local_results(predicate)[0]
        local.run_if(first, lambda: strategy.run(function), variables)

    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        with strategy.scope():
            run_on_all(strategy, predicate)
    else:
        tf.distribute.get_replica_context().merge_call(run_on_all, args=(predicate,))


def skip_reduction(optimizer):
    """Return a context in which `optimizer` takes gradients as sums, and sums them no more."""
    return keras_internals.skip_reduction(optimizer)


def begin_alike(variables):
    """Assign the first replica's values to the variables of all: strategies do so."""


def are_alike(variables):
    """Return whether all replicas hold the same values: strategies see to it."""
    return True


def total(variable):
    """Return the sum of the replicas' values of `variable` as a NumPy array.

    Every worker must call it.
    """
    strategy = variable.value.distribute_strategy
    # As read, a value may name no device, which sums of several workers need.
    values = tf.function(strategy.run)(lambda: sum_over([tf.identity(variable.value)])[0])
    return strategy.experimental_local_results(values)[0].numpy()
