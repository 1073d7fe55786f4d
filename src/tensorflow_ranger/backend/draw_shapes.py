"""The shape of a draw where every array knows its own: on JAX and PyTorch."""

import math


def shape_of(name, arguments):
    """Return the shape that a function of `keras.random` draws numbers of."""
    if name != "dropout":
        return tuple(arguments["shape"])
    shape, noise_shape = arguments["inputs"].shape, arguments["noise_shape"]
    if noise_shape is None:
        return tuple(shape)
    return tuple(shape[i] if size is None else size for i, size in enumerate(noise_shape))


def static_sizes(shape):
    """Return `shape` as a list of integers."""
    return [int(size) for size in shape]


def numbers_per_sample(multiple, shape):
    """Return how many numbers a draw of this shape has of a sample, with `multiple` rows of it."""
    return multiple * math.prod(shape[1:])
