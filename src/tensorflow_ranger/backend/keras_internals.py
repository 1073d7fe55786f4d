"""What Keras does not export and this library needs: one small function for each private name.

Read in Keras 3.12 to 3.15. No other file imports a private module of Keras or assigns a private
attribute of its objects.
"""

import contextlib

import keras
from keras.src import backend as keras_backend
from keras.src.backend.common import global_state
from keras.src.trainers import data_adapters


def get_mask(tensor):
    """Return the mask that Keras keeps with `tensor`, or None."""
    return keras_backend.get_keras_mask(tensor)


def set_mask(tensor, mask):
    """Let Keras find `mask` with `tensor`."""
    keras_backend.set_keras_mask(tensor, mask)


def is_saving():
    """Return whether a model is being saved at this moment."""
    return global_state.get_global_attribute("shared_objects/id_to_obj_map") is not None


def as_fit_converts(x, y, sample_weight, samples):
    """Return the arrays of a batch as `fit` hands them to a training step.

    Args:
        x: Inputs.
        y: Targets, or None.
        sample_weight: Sample weights, or None.
        samples: Number of samples.

    Returns:
        Tuple of nested tensors.
    """
    adapter = data_adapters.get_data_adapter(x, y, sample_weight, batch_size=samples)
    if keras.config.backend() == "tensorflow":
        batch = next(iter(adapter.get_tf_dataset()))
    elif keras.config.backend() == "jax":
        batch = next(iter(adapter.get_jax_iterator()))
    else:
        batch = next(iter(adapter.get_torch_dataloader()))
    return keras.utils.unpack_x_y_sample_weight(batch)


@contextlib.contextmanager
def rows_of_state(layers, variables, rows):
    """Let layers that keep state for each sample run on fewer samples than they were built for.

    Args:
        layers: Recurrent layers with ``stateful=True``, which compare the number of samples.
        variables: Variables whose first axis is the samples.
        rows: Samples of the present micro-batch, or None where a graph does not know it.
    """
    expected = [layer._expected_batch_size for layer in layers]
    shapes = [variable._shape for variable in variables]
    for layer in layers:
        layer._expected_batch_size = None
    for variable in variables:
        variable._shape = (rows, *variable._shape[1:])
    try:
        yield
    finally:
        for layer, size in zip(layers, expected, strict=True):
            layer._expected_batch_size = size
        for variable, shape in zip(variables, shapes, strict=True):
            variable._shape = shape
