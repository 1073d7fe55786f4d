"""Copies of a model that trains in micro-batches: they do so too, or a warning says so."""

import warnings

from tensorflow_ranger.backend import keras_internals


def copy_overrides(model, installer):
    """Return the methods of `model` that copies of it are made by, by their names.

    `copy.deepcopy` and `pickle` make a copy that is trained alike. `keras.models.clone_model`
    carries over what `compile` was given and nothing else: that is told.

    Args:
        model: A Keras model.
        installer: Function that returns a picklable function, which installs on a copy what
            `model` has and returns the copy.
    """

    def reduce_ex(protocol):
        make, arguments = model.__reduce__()
        return _made, (make, arguments, installer())

    def get_compile_config():
        if not keras_internals.is_saving():
            warnings.warn(
                "A clone of this model gets what compile was given, and trains on whole batches: "
                "microbatch and multitask are not part of that. Call them on the clone, or copy "
                "the model by copy.deepcopy, which carries them over.",
                stacklevel=2,
            )
        return type(model).get_compile_config(model)

    return {"__reduce_ex__": reduce_ex, "get_compile_config": get_compile_config}


def _made(make, arguments, install):
    return install(make(*arguments))
