"""How Keras' trainer on JAX takes the state of a model and places its batches.

Read in Keras 3.12 to 3.15.
"""

import contextlib

import keras

_STATE = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)


def return_state(model, state):
    """Let `fit` on JAX find the values that it has taken out of the variables of `model`.

    ``JAXTrainer.fit`` empties the variables, and when it ends, by an error, too, fills them from
    ``_jax_state``: the values that the last step returned, which a later one may have given up.

    Args:
        model: A Keras model in `fit`.
        state: Keras' four lists of values: trainable, non-trainable, optimizer, metrics.
    """
    model._jax_state = dict(zip(_STATE, state, strict=True))


@contextlib.contextmanager
def state_in_variables(model, state):
    """Inside, the variables of `model` hold the values that `fit` on JAX has taken out of them.

    ``JAXTrainer._get_jax_state`` empties them by ``_purge_model_variables``.

    Args:
        model: A Keras model in `fit`.
        state: Keras' four lists of values: trainable, non-trainable, optimizer, metrics.
    """
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    for variables, values in zip(groups, state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    try:
        yield
    finally:
        model._purge_model_variables(**dict.fromkeys(_STATE, True))


def hand_on_uneven_batches(epoch_iterator, is_even, convert):
    """Let `epoch_iterator` give batches that Keras can't shard as ``convert(data)``.

    ``JAXEpochIterator._get_iterator`` shards each batch by its trainer's ``_distribute_data``,
    which raises an error for a batch that the devices can't share evenly. Only this iterator is
    changed.

    Args:
        epoch_iterator: Keras' epoch iterator, which `before_build` shows.
        is_even: Function that tells of a batch whether Keras can shard it.
        convert: Function from another batch to what the step is given.
    """
    from keras.src.backend.jax.trainer import _distribute_data

    def batches():
        layouts = None
        for data in epoch_iterator.data_adapter.get_jax_iterator():
            if not is_even(data):
                yield convert(data)
                continue
            if layouts is None:  # as Keras does: once, not for each batch
                layouts = keras.tree.map_structure(_layout, data)
            yield _distribute_data(data, layouts)

    epoch_iterator._get_iterator = batches


def _layout(leaf):
    if leaf is None:
        return None
    return keras.distribution.distribution().get_data_layout(leaf.shape).backend_layout
