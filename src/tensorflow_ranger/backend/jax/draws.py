"""JAX: rows of a draw are counters from an offset on; Keras' own functions make the numbers."""

import math

import jax
import jax.numpy as jnp
from jax.extend import random as extended

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.draw_shapes import numbers_per_sample as numbers_per_sample
from tensorflow_ranger.backend.draw_shapes import shape_of as shape_of
from tensorflow_ranger.backend.draw_shapes import static_sizes as static_sizes


def place(sample):
    """Return the place of a sample in its batch as a scalar that rows can be added to."""
    return jnp.asarray(sample, "int32")


def can_place(name):
    """Return whether the function of `keras.random` of this name draws each number by its place."""
    return bool(jax.config.jax_threefry_partitionable)  # pyright: ignore


def drawn(name, function, arguments, shape, rows):
    """Return what ``function(**arguments)`` makes of the numbers of these rows.

    Args:
        name: Name of a function of `keras.random`.
        function: The function.
        arguments: Dict of all its arguments.
        shape: What `shape_of` returned.
        rows: Pair of the scalar place of the first sample and the numbers per sample, or None for
            the first numbers of the seed.
    """
    seed = arguments["seed"]
    if not isinstance(seed, jax.Array):
        seed = keras_internals.drawn_seed(seed)
    if rows is not None:
        seed = _key(seed, *rows)
    return function(**{**arguments, "seed": seed})


def for_each(function, row, places):
    """Return what ``function(shape, place)`` draws of shape `row` for each of the places."""
    numbers = jax.vmap(lambda place: function(row, place))(places)
    return numbers.reshape(-1, *row[1:])


def _key(seed, place, stride):
    """Return a key whose numbers are those of `seed` from number ``place * stride`` on."""
    assert stride < 2**32
    place = jnp.asarray(place, "uint32")
    low_place, high_place = place & 0xFFFF, place >> 16
    low, high = jnp.uint32(stride & 0xFFFF), jnp.uint32(stride >> 16)
    middle = high_place * low + (low_place * low >> 16)
    also = low_place * high + (middle & 0xFFFF)
    above = high_place * high + (middle >> 16) + (also >> 16)
    offset = jnp.stack([above, place * jnp.uint32(stride)])
    return jax.random.wrap_key_data(jnp.concatenate([seed, offset]), impl=_OFFSET_THREEFRY)


def _random_bits(key, bit_width, shape):
    """Return what JAX's ``threefry2x32`` gives for counters from ``key[2:]`` on."""
    assert math.prod(shape) < 2**32
    # In the shape of the draw XLA makes the numbers on all cores, in a row on one.
    place = jnp.zeros(shape, "uint32")
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        place += stride * jax.lax.broadcasted_iota("uint32", shape, axis)
    low = place + key[3]
    high = key[2] + (low < place).astype("uint32")
    first, second = extended.threefry2x32_p.bind(key[0], key[1], high, low)
    if bit_width == 64:
        bits = (first.astype("uint64") << 32) | second.astype("uint64")
    else:
        bits = (first ^ second).astype(f"uint{bit_width}")
    return bits


def _split(key, shape):
    pairs = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(key[:2]), shape))
    return jnp.concatenate([pairs, jnp.broadcast_to(key[2:], pairs.shape)], axis=-1)


def _fold_in(key, number):
    pair = jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key[:2]), number))
    return jnp.concatenate([pair, key[2:]])


def _seed(seed):
    return jnp.concatenate([jax.random.key_data(jax.random.key(seed)), jnp.zeros(2, "uint32")])


_OFFSET_THREEFRY = extended.define_prng_impl(
    key_shape=(4,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_from_offset",
    tag="tro",
)
