"""TensorFlow: the stateless random operations with a counter that begins at a sample's place."""

import functools
from typing import Any

import keras
import tensorflow as tf

from tensorflow_ranger.backend import keras_internals


def place(sample):
    """Return the place of a sample in its batch as a scalar that rows can be added to."""
    return tf.cast(sample, "int32")


def can_place(name):
    """Return whether the function of `keras.random` of this name draws each number by its place."""
    # How many counters a truncated number takes depends on how often it is drawn anew.
    return name != "truncated_normal"


def shape_of(name, arguments):
    """Return the shape that a function of `keras.random` draws numbers of."""
    if name != "dropout":
        return arguments["shape"]
    inputs, noise_shape = arguments["inputs"], arguments["noise_shape"]
    known, found = inputs.shape, tf.shape(inputs)
    shape = [found[i] if size is None else size for i, size in enumerate(known)]
    if noise_shape is None:
        return shape
    return [shape[i] if size is None else size for i, size in enumerate(noise_shape)]


def numbers_per_sample(multiple, shape):
    """Return how many numbers a draw of this shape has of a sample, with `multiple` rows of it."""
    return _product([multiple, *_sizes(shape)[1:]])


def static_sizes(shape):
    """Return `shape` as a list of integers, with None for what a graph does not know."""
    known = [tf.get_static_value(size) for size in _sizes(shape)]
    return [None if size is None else int(size) for size in known]


def drawn(name, function, arguments, shape, rows):
    """Return what ``function(**arguments)`` makes of the numbers of these rows.

    Args:
        name: Name of a function of `keras.random`.
        function: The function.
        arguments: Dict of all its arguments.
        shape: What `shape_of` returned.
        rows: Pair of the scalar place of the first sample and the numbers per sample, or None for
            the first numbers of the seed. Or of a vector of the places of all samples, of each of
            which the first numbers are drawn.
    """
    if rows is None:
        return function(**arguments)
    return _FUNCTIONS[name](**{**arguments, "shape": _sizes(shape), "rows": rows})


def for_each(function, row, places):
    """Return what ``function(shape, place)`` draws of shape `row` for each of the places."""
    return function([_rows_of(places) * row[0], *row[1:]], places)


def _dropout(shape, rows, inputs, rate, noise_shape, seed):
    if rate == 1.0:
        return tf.zeros_like(inputs)
    if rate == 0.0:
        return inputs

    def sampler(shape, dtype):
        return _numbers(_uniform_numbers(dtype), seed, shape, rows, dtype)

    return tf.nn.experimental.general_dropout(inputs, rate, sampler, tf.stack(shape))


def _uniform(shape, rows, minval, maxval, dtype, seed):
    dtype = _dtype(dtype)
    minval, maxval = tf.cast(minval, dtype), tf.cast(maxval, dtype)
    numbers = _numbers(_uniform_numbers(dtype), seed, shape, rows, dtype)
    return numbers * (maxval - minval) + minval


def _normal(shape, rows, mean, stddev, dtype, seed):
    dtype = _dtype(dtype)
    operation = functools.partial(tf.raw_ops.StatelessRandomNormalV2, dtype=dtype)
    # What XLA draws depends on the shape of all: numbers in one row depend on their place alone.
    numbers = _numbers(operation, seed, shape, rows, dtype, in_one_row=True)
    return numbers * tf.convert_to_tensor(stddev, dtype) + tf.convert_to_tensor(mean, dtype)


def _randint(shape, rows, minval, maxval, dtype, seed):
    wanted = _dtype(dtype)
    drawn = wanted if wanted in (tf.int32, tf.int64) else tf.int64
    operation = functools.partial(
        tf.raw_ops.StatelessRandomUniformIntV2,
        minval=tf.cast(minval, drawn),
        maxval=tf.cast(maxval, drawn),
    )
    return tf.cast(_numbers(operation, seed, shape, rows, drawn), wanted)


_FUNCTIONS = {"dropout": _dropout, "normal": _normal, "randint": _randint, "uniform": _uniform}


def _uniform_numbers(dtype):
    return functools.partial(tf.raw_ops.StatelessRandomUniformV2, dtype=dtype)


def _numbers(operation, seed, shape, rows, dtype, in_one_row=False):
    """Return the rows of what `operation` draws for the whole batch.

    One counter of Philox makes four numbers, of 64 bits two. Where a sample has a multiple of that
    many, a micro-batch begins with a counter of its own. Otherwise it draws from the counter before
    and cuts what is not its own.
    """
    place, per_sample = rows
    group = 2 if dtype.size == 8 else 4
    sizes: list[Any] = _sizes(shape)
    start = tf.cast(place, "int64") * tf.cast(per_sample, "int64")
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(
        seed=_as_keras_casts(keras_internals.drawn_seed(seed))
    )
    before = tf.stack([start // group, tf.zeros_like(start)], axis=-1)
    counter = tf.bitcast(tf.bitcast(counter, "int64") + before, "uint64")
    draw = functools.partial(operation, key=key, alg=tf.raw_ops.StatelessRandomGetAlg())
    is_aligned = isinstance(per_sample, int) and per_sample % group == 0
    is_each = start.shape.rank > 0
    row = [sizes[0] // _rows_of(place), *sizes[1:]] if is_each else sizes
    count = _product(row)

    def draw_from(counter, skipped):
        if not is_aligned:
            numbers = draw(counter=counter, shape=[(count + 2 * (group - 1)) // group * group])
            return tf.reshape(tf.slice(numbers, [skipped], [count]), tf.stack(row))
        if in_one_row:
            return tf.reshape(draw(counter=counter, shape=[count]), tf.stack(row))
        return draw(counter=counter, shape=tf.stack(row))

    skipped = start % group
    if not is_each:
        return draw_from(counter, skipped)
    # The loop runs once for each sample, so it does nothing but draw.
    if is_aligned:
        each = tf.map_fn(lambda own: draw_from(own, 0), counter, fn_output_signature=dtype)
    else:
        each = tf.map_fn(lambda own: draw_from(*own), (counter, skipped), fn_output_signature=dtype)
    return tf.reshape(each, tf.stack(sizes))


def _rows_of(places):
    return tf.shape(places)[0] if places.shape[0] is None else places.shape[0]


def _as_keras_casts(seed):
    if seed.dtype == tf.int32:
        return seed
    return tf.cast(tf.math.floormod(seed, tf.int32.max - 1), "int32")


def _product(sizes):
    if all(isinstance(size, int) for size in sizes):
        return functools.reduce(lambda a, b: a * b, sizes, 1)
    return tf.reduce_prod([tf.cast(size, "int32") for size in sizes])


def _sizes(shape):
    """Return `shape` as a list of integers, and of scalars where a graph does not know them."""
    if isinstance(shape, tf.TensorShape):
        return list(shape)
    sizes = tf.unstack(shape) if tf.is_tensor(shape) else list(shape)
    known = [tf.get_static_value(size) for size in sizes]
    return [size if value is None else int(value) for size, value in zip(sizes, known, strict=True)]


def _dtype(dtype):
    return tf.as_dtype(keras.backend.standardize_dtype(dtype or keras.config.floatx()))
