"""TensorFlow: resource variables updated in place, conditions as loops of no or one trip."""

import contextlib

import keras
import tensorflow as tf

from tensorflow_ranger.backend import keras_internals, process_memory
from tensorflow_ranger.backend.one_by_one import blend as blend
from tensorflow_ranger.backend.one_by_one import blend_squares as blend_squares
from tensorflow_ranger.backend.one_by_one import descend as descend

KEEPS_ALL_ASSIGNMENTS = True  # a variable that a layer assigns is assigned


def version():
    """Return the framework's version string."""
    return tf.__version__


def devices():
    """Return the names of the devices TensorFlow computes on."""
    return [device.name for device in tf.config.list_logical_devices()]


def supports_dtype(dtype):
    """Return whether arrays of the dtype named `dtype` can be made."""
    return True


def has_value(variable):
    """Return whether `variable` holds a value, not one that a failed step has taken."""
    return True


def static_value(tensor):
    """Return `tensor` as a NumPy array, or None while it is only known to a graph."""
    return tf.get_static_value(tf.convert_to_tensor(tensor))


def all_finite(tensors):
    """Return a scalar bool: no tensor holds an infinity or a NaN."""
    # A sum keeps every infinity or NaN as one of the two, and reads faster than a test of each
    # element. It may also overflow: then the elements decide.
    values = [
        t.values if isinstance(t, tf.IndexedSlices) else tf.convert_to_tensor(t) for t in tensors
    ]
    total = tf.add_n([tf.cast(tf.reduce_sum(_widen(value)), "float64") for value in values])
    return tf.cond(
        tf.math.is_finite(total), lambda: tf.constant(True), lambda: _each_finite(values)
    )


def _widen(value):
    return tf.cast(value, "float32") if value.dtype.size < 4 else value


def _each_finite(values):
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])


def squared_norm(tensors):
    """Return the squared Euclidean norm of all `tensors` together, a float32 scalar."""
    values = [_rows_summed(t) if isinstance(t, tf.IndexedSlices) else t for t in tensors]
    return 2 * tf.add_n([tf.nn.l2_loss(tf.cast(value, "float32")) for value in values])


def _rows_summed(slices):
    # A row may be named several times, and its gradient is the sum.
    rows, places = tf.unique(slices.indices)
    return tf.math.unsorted_segment_sum(slices.values, places, tf.size(rows))


def add_scaled(sums, tensors, scale, keep):
    """Add ``scale * tensors`` to the variables `sums` where the scalar `keep` holds.

    A `tf.IndexedSlices` touches only the rows it names.
    """
    run_if(keep, lambda: _add_scaled(sums, tensors, scale), sums)


def _add_scaled(sums, tensors, scale):
    for total, tensor in zip(sums, tensors, strict=True):
        if isinstance(tensor, tf.IndexedSlices):
            rows = _scale(tensor.values, scale, total.dtype)
            total.value.scatter_add(tf.IndexedSlices(rows, tensor.indices))
        else:
            total.value.assign_add(_scale(tensor, scale, total.dtype))


def _scale(tensor, scale, dtype):
    tensor = tf.cast(tensor, dtype)
    return tensor if isinstance(scale, float) and scale == 1.0 else tensor * tf.cast(scale, dtype)


def blend_where(slots, tensors, share, where):
    """Assign ``slot + share (tensor - slot)`` to `slots` where the scalar bool `where` holds."""
    run_if(where, lambda: blend(slots, tensors, share), slots)


def computed(tensors):
    """Return `tensors`: a graph computes each once."""
    return tensors


def softplus(tensor):
    """Return ``log(1 + exp(tensor))`` of a `tensor` >= 0."""
    # Three passes, which is less than `tf.nn.softplus` takes. The logarithm is -log 2 at least.
    return tensor - tf.math.log(tf.sigmoid(tensor))


def divide(sums, divisor, dtypes):
    """Return ``sums / divisor`` as tensors of the given dtypes."""
    return [
        tf.cast(total.value / tf.cast(divisor, total.dtype), dtype)
        for total, dtype in zip(sums, dtypes, strict=True)
    ]


def zero(sums, where):
    """Assign zeros to the variables `sums` where the scalar `where` holds."""
    run_if(where, lambda: _zero(sums), sums)


def _zero(sums):
    for total in sums:
        total.value.assign(tf.zeros_like(total.value))


def run_if(predicate, function, variables):
    """Call `function`, which assigns `variables`, where the scalar bool `predicate` holds.

    Under XLA a `tf.cond` copies every variable it may assign, on each call. A loop updates them in
    place, so a loop of no trip costs nothing. Without XLA the two cost the same.
    """
    known = static_value(predicate)
    if known is None:
        tf.while_loop(lambda go: go, lambda _: _ended(function), [predicate])
    elif known:
        function()


def _ended(function):
    function()
    return (tf.constant(False),)


def is_sparse(leaf):
    """Return whether `leaf` of a batch is a `tf.SparseTensor`."""
    return isinstance(leaf, tf.SparseTensor)


def rows(leaf, start, size):
    """Return the rows of `leaf` from `start` on, `size` at most."""
    if not is_sparse(leaf):
        return leaf[start : start + size]
    others = leaf.dense_shape[1:]
    starts = tf.concat([tf.reshape(tf.cast(start, "int64"), (1,)), tf.zeros_like(others)], 0)
    sizes = tf.concat([tf.reshape(tf.cast(size, "int64"), (1,)), others], 0)
    part = tf.sparse.slice(leaf, starts, sizes)
    known = isinstance(start, int) and isinstance(size, int) and leaf.shape[0] is not None
    length = min(size, leaf.shape[0] - start) if known else None
    return tf.SparseTensor(
        part.indices, part.values, _with_static(part.dense_shape, (length, *leaf.shape[1:]))
    )


def _with_static(dense_shape, static):
    # tf.sparse.slice forgets what is known of the shape, and layers ask for it.
    parts = [dense_shape[i] if size is None else size for i, size in enumerate(static)]
    return tf.stack([tf.cast(part, "int64") for part in parts])


def samples_at(leaf, places):
    """Return the rows of `leaf` at these places, a NumPy array of integers."""
    return tf.gather(leaf, places)


def filled(leaf, steps):
    """Return `leaf` with zeros behind its second axis, which has `steps` entries then."""
    missing = [[0, steps - tf.shape(leaf)[1]]]
    found = tf.pad(leaf, [[0, 0], *missing, *[[0, 0]] * (len(leaf.shape) - 2)])
    return tf.ensure_shape(found, [leaf.shape[0], steps, *leaf.shape[2:]])


def rows_at(leaf, start, count):
    """Return `count` rows of `leaf` from the scalar `start` on."""
    return leaf[start : start + count]


def gradients_of(function, tensors, number):
    """Return the gradients of each of `number` scalars that ``function(tensors)`` returns."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensors)
        scalars = function(tensors)
    none = tf.UnconnectedGradients.ZERO
    return [tape.gradient(each, tensors, unconnected_gradients=none) for each in scalars]


def copied(value):
    """Return `value` as a tensor that later assignments leave alone."""
    return tf.identity(value)


def foreign_state(model):
    """Return the variables of `model` that assignments reach past Keras.

    They are the `tf.Variable` objects that layers hold as attributes, and the variables of a
    reloaded SavedModel, whose own functions assign them.
    """
    if keras_internals.strategy_of(model) is not None:
        return []
    held = {id(v.value) for v in model.variables}
    found = []
    for layer in keras_internals.layers_of(model):
        if isinstance(layer, keras.layers.TFSMLayer):
            found += layer.non_trainable_variables
            continue
        for value in _attributes(layer):
            if isinstance(value, tf.Variable) and id(value) not in held:
                held.add(id(value))
                found.append(_Foreign(value))
    return found


def _attributes(layer):
    for value in vars(layer).values():
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value


class _Foreign:
    """A `tf.Variable` with the attributes of a Keras variable that are used here."""

    def __init__(self, variable):
        self.value = variable
        self.path = variable.name
        self.dtype = variable.dtype.name
        self.shape = tuple(variable.shape)
        self.assign = variable.assign


def known_means(foreign):
    """Return those of the foreign state that are known to be means over samples."""
    return []


def foreign_normalizations(foreign):
    """Return ``(mean, variance, momentum)`` of the foreign state's normalizations."""
    return []


def initial_value(variable):
    """Return the value of `variable` as a NumPy array, from within a trace, too."""
    with tf.init_scope():
        return keras.ops.convert_to_numpy(variable.value)


@contextlib.contextmanager
def kept(model):
    """Leave the variables that assignments reach past Keras as they were."""
    held = [(variable, copied(variable.value)) for variable in foreign_state(model)]
    try:
        yield
    finally:
        for variable, value in held:
            variable.assign(value)


def random_state():
    """Return no bytes: layers draw from Keras' seeds alone."""
    return b""


def apply(optimizer, gradients, variables):
    """Call `optimizer.apply`."""
    optimizer.apply(gradients, variables)


def plus(total, gradient, factor):
    """Return ``total + factor * gradient``, where a `factor` of None is 1.

    Of a `tf.IndexedSlices` only the rows it names are added. A total that is one has no rows yet.
    """
    if isinstance(total, tf.IndexedSlices):
        is_list = isinstance(gradient, tf.IndexedSlices)
        return gradient if is_list else _times(gradient, factor, total.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        rows = _times(gradient.values, factor, total.dtype)
        return tf.tensor_scatter_nd_add(total, gradient.indices[:, None], rows)
    return total + _times(gradient, factor, total.dtype)


def _times(tensor, factor, dtype):
    tensor = tf.cast(tensor, dtype)
    return tensor if factor is None else tensor * tf.cast(factor, dtype)


def times(variable, factor):
    """Return ``factor * variable`` as a tensor."""
    return variable.value * tf.cast(factor, variable.dtype)


def reset_peak_memory():
    """Begin a new peak for `peak_memory`."""
    for gpu in tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(gpu.name)
    process_memory.reset_peak_memory()


def peak_memory():
    """Return the most bytes in use since `reset_peak_memory`, or None where nobody tells."""
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_memory_info(gpus[0].name)["peak"]
    return process_memory.peak_memory()


def wait(tensor):
    """Return when `tensor` has been computed."""
    tensor.numpy()
