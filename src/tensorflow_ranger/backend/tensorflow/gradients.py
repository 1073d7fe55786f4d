"""TensorFlow: a `tf.while_loop` with the tape inside, so one micro-batch is recorded at a time."""

import keras
import tensorflow as tf

from tensorflow_ranger.backend.tensorflow.loops import fold


def leaves(batch):
    """Return the arrays of the pytree `batch`, without its None leaves."""
    return [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]


def map_leaves(function, batch):
    """Return `batch` with ``function(leaf)`` in place of each leaf but None."""
    return keras.tree.map_structure(lambda x: None if x is None else function(x), batch)


def accumulate(loss_fn, variables, batch, size):
    """Return the batch's loss and its gradients, from micro-batches of `size` samples.

    Args:
        loss_fn: Function ``micro_batch -> (loss, mass)``. A mass of None means that the loss is
            the mean over the samples.
        variables: List of `tf.Variable` or `keras.Variable`.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.

    Returns:
        ``(value, gradients)``: a scalar, and a list with a tensor for each variable, or None where
        the loss does not depend on it.
    """
    variables = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    batch = map_leaves(tf.convert_to_tensor, batch)
    _check_samples(leaves(batch))
    connected = [False] * len(variables)

    def add(sums, micro_batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss, mass = loss_fn(micro_batch)
        gradients = tape.gradient(loss, variables)
        for i, gradient in enumerate(gradients):
            connected[i] |= gradient is not None
        samples = tf.shape(leaves(micro_batch)[0])[0]
        scale, mass = (samples, 1) if mass is None else (1, mass)
        parts = [loss, mass, *gradients]
        return [_add(total, part, scale) for total, part in zip(sums, parts, strict=True)]

    loss, mass, *totals = fold(add, _zeros(variables), batch, size)
    gradients = [
        tf.cast(_mean(total, mass), variable.dtype) if is_connected else None
        for total, variable, is_connected in zip(totals, variables, connected, strict=True)
    ]
    return _mean(loss, mass), gradients


def _check_samples(arrays):
    unknown = [array for array in arrays if array.shape[0] is None]
    samples = next((array.shape[0] for array in arrays if array.shape[0] is not None), None)
    if samples is None:
        samples = tf.shape(arrays[0])[0]
        tf.debugging.assert_positive(
            samples, "batch must hold at least one sample: got 0. Leave empty batches out."
        )
    for array in unknown:
        tf.debugging.assert_equal(
            tf.shape(array)[0],
            samples,
            "The arrays of batch must have leading axes of the same size. Give each one row for "
            "each sample.",
        )


def _zeros(variables):
    totals = [tf.zeros(v.shape, tf.float32 if v.dtype.size < 4 else v.dtype) for v in variables]
    dtype = tf.float64 if any(total.dtype == tf.float64 for total in totals) else tf.float32
    return [tf.zeros((), dtype), tf.zeros((), dtype), *totals]


def _add(total, part, scale):
    if part is None:
        return total
    scale = tf.cast(scale, total.dtype)
    if isinstance(part, tf.IndexedSlices):
        rows = scale * tf.cast(part.values, total.dtype)
        return tf.tensor_scatter_nd_add(total, part.indices[:, None], rows)
    return total + scale * tf.cast(part, total.dtype)


def _mean(total, mass):
    return tf.math.divide_no_nan(total, tf.cast(mass, total.dtype))


def gradient(function, tensor):
    """Return the gradient of a function of one tensor; None if its scalar depends on none of it."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensor)
        value = function(tensor)
    slope = tape.gradient(value, tensor)
    return None if slope is None else tf.convert_to_tensor(slope)
