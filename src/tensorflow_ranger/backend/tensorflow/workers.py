"""TensorFlow: what Keras' trainer lacks under a `MultiWorkerMirroredStrategy`.

Plain `fit` fails there: Keras makes one tensor of a worker's part of a batch, and of a step's logs.
"""

import keras
import tensorflow as tf

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.tensorflow.strategies import is_multi_worker


def trainer_overrides(model):
    """Return the methods of Keras' trainer that `model` needs others for, by their names."""
    strategy = keras_internals.strategy_of(model)
    if strategy is None or not is_multi_worker(strategy):
        return {}

    def symbolic_build(iterator=None, data_batch=None):
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(_local, next(batches))
        with strategy.scope():
            keras_internals.build(model, data_batch)

    def make_test_function(force=False):
        if model.test_function is not None and not force:
            return

        @tf.function(autograph=False, reduce_retracing=True)
        def test(data):
            strategy.run(model.test_step, args=(data,))
            return model.get_metrics_result()

        def test_next(iterator):
            logs = None
            for _ in range(model.steps_per_execution):
                logs = test(next(iterator))
            return logs

        model.test_function = test_next

    return {
        **keras_internals.in_place_of_build(symbolic_build),
        "make_test_function": make_test_function,
    }


def _local(values):
    return values.values[0] if isinstance(values, tf.distribute.DistributedValues) else values
