"""PyTorch: random numbers made of the words of `random_words`, which begin at any place.

The numbers are not those that Keras draws on PyTorch.
"""

import math

import keras
import numpy as np
import torch

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.draw_shapes import numbers_per_sample as numbers_per_sample
from tensorflow_ranger.backend.draw_shapes import shape_of as shape_of
from tensorflow_ranger.backend.draw_shapes import static_sizes as static_sizes
from tensorflow_ranger.backend.torch.random_words import hashes, stream


def place(sample):
    """Return the place of a sample in its batch as a scalar that rows can be added to."""
    return int(sample)


def can_place(name):
    """Return whether the function of `keras.random` of this name draws each number by its place."""
    return True


def _numbers(seed, shape, rows, width):
    """Return integers of `width` random bits, 32 or 64, of the rows of a draw."""
    starts = [0]
    if rows is not None:
        places, per_sample = rows
        starts = [int(place) * per_sample for place in np.atleast_1d(places)]
    count = math.prod(shape) // len(starts)
    seeds = [int(number) % 2**64 for number in keras_internals.drawn_seed(seed)]
    device = keras_internals.drawing_device()
    words = stream if torch.device(device).type == "cpu" else hashes
    if width == 64:
        return words(starts, count, seeds, device).view(shape)
    halves = words([start // 2 for start in starts], count // 2 + 1, seeds, device)
    halves = halves.view(torch.int32)
    odd = [start % 2 for start in starts]
    if len(set(odd)) == 1:
        return halves[:, odd[0] : odd[0] + count].reshape(shape)
    within = torch.arange(count, device=device) + torch.tensor(odd, device=device)[:, None]
    return halves.gather(1, within).view(shape)


def _unit(seed, shape, rows, dtype):
    """Return numbers in [0, 1)."""
    if dtype == torch.float64:
        bits = _numbers(seed, shape, rows, 64)
        return bits.bitwise_right_shift_(11).to(dtype).mul_(2.0**-53).add_(0.5)
    # As many bits as every dtype holds exactly: what is rounded up could be 1.
    kept = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    bits = _numbers(seed, shape, rows, 32).bitwise_right_shift_(32 - kept)
    return bits.to(torch.float32).mul_(2.0**-kept).add_(0.5).to(dtype)


def _central(seed, shape, rows, dtype):
    """Return numbers in (-1, 1), as many above 0 as below and none that is 0."""
    width, kept = (64, 53) if dtype == torch.float64 else (32, 24)
    odd = _numbers(seed, shape, rows, width).bitwise_or_(1)
    # The largest are rounded to what would else be 1.
    return odd.to(dtype).mul_((1.0 - 2.0**-kept) * 2.0 ** (1 - width))


def _uniform(seed, shape, rows, minval, maxval, dtype):
    unit = _unit(seed, shape, rows, _torch_dtype(dtype))
    return unit.mul_(maxval - minval).add_(minval)


def _normal(seed, shape, rows, mean, stddev, dtype):
    """Return normally distributed numbers, as the inverse of their distribution makes them."""
    dtype = _torch_dtype(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    standard = _central(seed, shape, rows, wide).erfinv_()
    return _moved(standard.mul_(math.sqrt(2.0) * stddev), mean).to(dtype)


def _truncated_normal(seed, shape, rows, mean, stddev, dtype):
    """Return what of a normal distribution is within two deviations of its mean."""
    dtype = _torch_dtype(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    edge = math.erf(math.sqrt(2.0))
    standard = _central(seed, shape, rows, wide).mul_(edge).erfinv_().mul_(math.sqrt(2.0))
    return _moved(standard.clamp_(-2.0, 2.0).mul_(stddev), mean).to(dtype)


def _moved(numbers, offset):
    return numbers if isinstance(offset, int | float) and not offset else numbers.add_(offset)


def _randint(seed, shape, rows, minval, maxval, dtype):
    count = maxval - minval
    if count <= 2**31:
        # The high bits of a product favour a number by less than 2^-32 times the count.
        bits = _numbers(seed, shape, rows, 32).view(torch.uint32).to(torch.int64)
        found = bits.mul_(count).bitwise_right_shift_(32)
    else:
        found = _numbers(seed, shape, rows, 64).bitwise_and_(2**63 - 1).remainder_(count)
    return _moved(found, minval).to(_torch_dtype(dtype))


def _dropout(seed, shape, rows, inputs, rate, noise_shape):
    if rate == 0.0:
        return inputs
    if rate == 1.0:
        return torch.zeros_like(inputs)
    bits = _numbers(seed, shape, rows, 32)
    keep = bits < round((1.0 - rate) * 2**32) - 2**31
    return inputs * keep.to(inputs.dtype).div_(1.0 - rate)


_FUNCTIONS = {
    "dropout": _dropout,
    "normal": _normal,
    "randint": _randint,
    "truncated_normal": _truncated_normal,
    "uniform": _uniform,
}


@torch.compiler.disable
def drawn(name, function, arguments, shape, rows):
    """Return what ``function(**arguments)`` makes of the numbers of these rows.

    Args:
        name: Name of a function of `keras.random`.
        function: The function.
        arguments: Dict of all its arguments.
        shape: What `shape_of` returned.
        rows: Pair of the place of the first sample and the numbers per sample, or None for
            the first numbers of the seed. Or of the places of all samples.
    """
    if keras_internals.drawing_device() == "meta":  # no numbers, but shapes
        return function(**arguments)
    return _FUNCTIONS[name](**{**arguments, "shape": shape, "rows": rows})


def for_each(function, row, places):
    """Return what ``function(shape, place)`` draws of shape `row` for each of the places."""
    return function((len(places) * row[0], *row[1:]), places)


def _torch_dtype(dtype):
    return getattr(torch, keras.backend.standardize_dtype(dtype or keras.config.floatx()))
