"""What Keras keeps with tensors, variables and their layouts. Read in Keras 3.12 to 3.15."""

import contextlib

from keras.src import backend as keras_backend


def get_mask(tensor):
    """Return the mask that Keras keeps with `tensor`, or None."""
    return keras_backend.get_keras_mask(tensor)


def set_mask(tensor, mask):
    """Let Keras find `mask` with `tensor`."""
    keras_backend.set_keras_mask(tensor, mask)


def layout_of(variable):
    """Return the layout of `variable` under a `keras.distribution`, or None.

    Keras gives a variable its ``_layout`` where it is made; tensors and variables of other
    frameworks have none.
    """
    return getattr(variable, "_layout", None)


def layout_map(distribution):
    """Return the `LayoutMap` of a `keras.distribution.ModelParallel`; of others, None.

    ``ModelParallel.__init__`` keeps it as ``_layout_map``.
    """
    return getattr(distribution, "_layout_map", None)


@contextlib.contextmanager
def rows_of_state(layers, variables, rows):
    """Let layers that keep state for each sample run on fewer samples than they were built for.

    ``RNN.call`` compares the number of samples with ``_expected_batch_size``, and a variable's
    assignments with its ``_shape``.

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
