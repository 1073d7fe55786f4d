"""TensorFlow: a `tf.while_loop` with the tape inside, so one micro-batch is recorded at a time."""

import keras
import tensorflow as tf

from tensorflow_ranger.backend.batches import resized
from tensorflow_ranger.backend.tensorflow.loops import fold

ASSIGNS_SEEDS = True  # Keras' layers move theirs on


def is_traced():
    """Return whether functions run on tensors without values."""
    return not tf.executing_eagerly()


def look(function, batch, rows):
    """Call ``function(micro_batch)`` of so many samples, and leave all as it was."""
    if tf.executing_eagerly():
        with keras.StatelessScope():
            function(resized(map_leaves(tf.convert_to_tensor, batch), rows))
        return
    specs = map_leaves(lambda leaf: tf.TensorSpec([rows, *leaf.shape[1:]], leaf.dtype), batch)
    tf.function(function).get_concrete_function(specs)


def leaves(batch):
    """Return the arrays of the pytree `batch`, without its None leaves."""
    return [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]


def map_leaves(function, batch):
    """Return `batch` with ``function(leaf)`` in place of each leaf but None."""
    return keras.tree.map_structure(lambda x: None if x is None else function(x), batch)


def accumulate(loss_fn, variables, batch, size, has_aux):
    """Return the batch's loss and its gradients, from micro-batches of `size` samples.

    Args:
        loss_fn: Function ``micro_batch -> (loss, mass, aux)``. A mass of None means that the loss
            is the mean over the samples; aux are nested scalars that are such means.
        variables: List of `tf.Variable` or `keras.Variable`.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.
        has_aux: Whether aux holds anything.

    Returns:
        ``(value, mass, aux, gradients)``: a scalar, what it was divided by, aux of the batch, and
        a list with a tensor for each variable, or None where the loss does not depend on it.
    """
    variables = _plain(variables)
    batch = map_leaves(tf.convert_to_tensor, batch)
    _check_samples(leaves(batch))
    connected = [False] * len(variables)

    def add(sums, micro_batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss, mass, aux = loss_fn(micro_batch)
        gradients = tape.gradient(loss, variables)
        for i, gradient in enumerate(gradients):
            connected[i] |= gradient is not None
        samples = tf.shape(leaves(micro_batch)[0])[0]
        scale, mass = (samples, samples) if mass is None else (1, mass)
        means = [_add(total, value, mass) for total, value in zip(sums[2], _flat(aux), strict=True)]
        parts = zip(sums[3], gradients, strict=True)
        return [
            _add(sums[0], loss, scale),
            _add(sums[1], mass, 1),
            means,
            [_add(total, gradient, scale) for total, gradient in parts],
        ]

    scalar, zeros = _zeros(variables)
    aux = _aux_of(loss_fn, map_leaves(lambda leaf: leaf[:size], batch)) if has_aux else ()
    begun = [scalar, scalar, [scalar for _ in _flat(aux)], zeros]
    loss, mass, means, totals = fold(add, begun, batch, size)
    gradients = [
        tf.cast(_mean(total, mass), variable.dtype) if is_connected else None
        for total, variable, is_connected in zip(totals, variables, connected, strict=True)
    ]
    aux = tf.nest.pack_sequence_as(aux, [_mean(total, mass) for total in means])
    return _mean(loss, mass), mass, aux, gradients


def accumulate_whole(loss_fn, outputs_fn, variables, batch, size):
    """Return a loss of the whole batch and its gradients, from micro-batches of `size` samples.

    Args:
        loss_fn: Function ``outputs -> (loss, aux)`` of the batch's outputs.
        outputs_fn: Function ``micro_batch -> outputs``: nested tensors with the samples along their
            leading axes.
        variables: List of `tf.Variable` or `keras.Variable`.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.

    Returns:
        ``(value, aux, gradients)``: a scalar, what `loss_fn` returned beside it, and a list with a
        tensor for each variable, or None where the loss does not depend on it.
    """
    variables = _plain(variables)
    batch = map_leaves(tf.convert_to_tensor, batch)
    _check_samples(leaves(batch))
    outputs = _outputs_of(outputs_fn, batch, size)
    rows = _flat(outputs)
    floats = [i for i, row in enumerate(rows) if row.dtype.is_floating]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        tape.watch([rows[i] for i in floats])
        loss, aux = loss_fn(tf.nest.pack_sequence_as(outputs, rows))
    found = tape.gradient(loss, [*variables, *(rows[i] for i in floats)])
    own, slopes = found[: len(variables)], found[len(variables) :]
    slopes = [
        tf.zeros_like(rows[i]) if slope is None else tf.convert_to_tensor(slope)
        for i, slope in zip(floats, slopes, strict=True)
    ]
    connected = [gradient is not None for gradient in own]

    def add(sums, part):
        micro_batch, slopes = part
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            found = _flat(outputs_fn(micro_batch))
        inputs = [found[i] for i in floats]
        gradients = tape.gradient(inputs, variables, output_gradients=slopes)
        for i, gradient in enumerate(gradients):
            connected[i] |= gradient is not None
        return [_add(total, part, 1) for total, part in zip(sums, gradients, strict=True)]

    begun = [_add(zero, part, 1) for zero, part in zip(_zeros(variables)[1], own, strict=True)]
    totals = fold(add, begun, (batch, slopes), size)
    gradients = [
        tf.cast(total, variable.dtype) if is_connected else None
        for total, variable, is_connected in zip(totals, variables, connected, strict=True)
    ]
    return loss, aux, gradients


def _outputs_of(outputs_fn, batch, size):
    """Return the outputs of the batch, and leave what the function's layers assign as it was."""
    if tf.executing_eagerly():
        parts = []
        with keras.StatelessScope():
            fold(lambda state, part: parts.append(outputs_fn(part)) or state, (), batch, size)
        return tf.nest.map_structure(lambda *rows: tf.concat(rows, 0), *parts)
    first = map_leaves(lambda leaf: leaf[:size], batch)
    with _Assigned() as scope:
        shapes = outputs_fn(first)
    begun = [(variable, tf.identity(variable.value)) for variable in scope.variables]
    samples = tf.shape(leaves(batch)[0])[0]
    empty = tf.nest.map_structure(
        lambda row: tf.zeros(tf.concat([[samples], tf.shape(row)[1:]], 0), row.dtype), shapes
    )

    def forward(state, micro_batch):
        start, outputs = state
        count = tf.shape(leaves(micro_batch)[0])[0]
        places = (start + tf.range(count))[:, None]
        outputs = tf.nest.map_structure(
            lambda whole, part: tf.tensor_scatter_nd_update(whole, places, part),
            outputs,
            outputs_fn(micro_batch),
        )
        return start + count, outputs

    _, outputs = fold(forward, (tf.constant(0), empty), batch, size)
    for variable, value in begun:
        variable.assign(value)
    return outputs


class _Assigned(keras.StatelessScope):
    """A stateless scope that knows which variables were assigned in it."""

    def __init__(self):
        super().__init__()
        self.variables = []

    def add_update(self, update):
        self.variables.append(update[0])
        super().add_update(update)


def _plain(variables):
    return [v.value if isinstance(v, keras.Variable) else v for v in variables]


def _flat(nested):
    return tf.nest.flatten(nested)


def _aux_of(loss_fn, micro_batch):
    """Return what `loss_fn` returns beside loss and mass, without running it."""
    graph = tf.function(lambda data: loss_fn(data)[2])
    return graph.get_concrete_function(micro_batch).structured_outputs


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
    return tf.zeros((), dtype), totals


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
