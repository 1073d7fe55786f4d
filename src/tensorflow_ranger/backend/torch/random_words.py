"""PyTorch: generators that begin at any place, since its own make one number after the other.

PyTorch's CPU generator is sequential, and the numbers of its CUDA generator depend on the shape. So
within micro-batches number j of a draw is number j of a stream that the draw's seed alone tells: on
the CPU one of NumPy's PCG64DXSM, elsewhere a hash of the seed and of j, the finalizer of SplitMix64
with a second key.

References:
    O'Neill: PCG, a family of simple fast space-efficient statistically good algorithms. 2014.
    Steele, Lea, Flood: Fast splittable pseudorandom number generators. OOPSLA 2014.
    Stafford: Better bit mixing (variant 13), http://zimbry.blogspot.com/2011/09/
"""

import numpy as np
import torch

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def stream(firsts, count, seeds, device):
    """Return rows of `count` int64 of random bits, those of NumPy's generator.

    Args:
        firsts: List of the number that each row begins with.
        count: Numbers in a row.
        seeds: List of two integers from 0 to 2^64 - 1.
        device: Name of the device: a CPU.
    """
    generator, place = np.random.PCG64DXSM(np.random.SeedSequence(seeds)), 0
    rows = np.empty((len(firsts), count), np.uint64)
    for row, first in zip(rows, firsts, strict=True):
        row[:] = generator.advance(first - place).random_raw(count)
        place = first + count
    return torch.from_numpy(rows.view(np.int64))


def hashes(firsts, count, seeds, device):
    """Return rows of `count` int64 of random bits, the hashes of the numbers of each row.

    Args:
        firsts: List of the number that each row begins with.
        count: Numbers in a row.
        seeds: List of two integers from 0 to 2^64 - 1.
        device: Name of the device.
    """
    mixed = _mixed(_mixed(seeds[0] + _GOLDEN) + seeds[1])
    before, within = _signed(mixed), _signed(_mixed(mixed + _GOLDEN))
    beginnings = torch.tensor(firsts, device=device)
    numbers = beginnings[:, None] + torch.arange(count, device=device)
    numbers = _fold(numbers.mul_(_signed(_GOLDEN)).add_(before), 30).mul_(_signed(_FIRST))
    numbers = _fold(numbers.bitwise_xor_(within), 27).mul_(_signed(_SECOND))
    return _fold(numbers, 31)


def _fold(numbers, bits):
    # An arithmetic shift repeats the sign: the mask makes it a logical one.
    return numbers.bitwise_xor_((numbers >> bits).bitwise_and_(2 ** (64 - bits) - 1))


def _mixed(number):
    number &= 2**64 - 1
    number = (number ^ number >> 30) * _FIRST & 2**64 - 1
    number = (number ^ number >> 27) * _SECOND & 2**64 - 1
    return number ^ number >> 31


def _signed(number):
    return number - 2**64 if number >= 2**63 else number
