"""Print what random numbers cost within a micro-batch, beside plain Keras' for as many numbers.

    KERAS_BACKEND=torch python -m benchmarks.draws [--rounds 60]

Both draw for the same shape from one `SeedGenerator`, in turn; on JAX and TensorFlow in a compiled
function, on TensorFlow under XLA, too. Ratios are medians of the ratios within a round.
"""

import argparse
import statistics
import time

import keras
from keras import ops

from tensorflow_ranger.backend import draws, keras_internals
from tensorflow_ranger.backend.placed_draws import PlacedDraws

BACKEND = keras.config.backend()
SHAPES = [(32, 128), (64, 128, 32), (256, 1024)]


def dropout(shape, seed):
    """Return ones of which dropout has left 70 %."""
    return keras.random.dropout(ops.ones(shape), 0.3, seed=seed)


def normal(shape, seed):
    """Return normally distributed numbers."""
    return keras.random.normal(shape, seed=seed)


def truncated_normal(shape, seed):
    """Return normally distributed numbers within two deviations."""
    return keras.random.truncated_normal(shape, seed=seed)


def uniform(shape, seed):
    """Return uniform numbers."""
    return keras.random.uniform(shape, seed=seed)


def randint(shape, seed):
    """Return integers from 0 to 9."""
    return keras.random.randint(shape, 0, 10, seed=seed)


def compiled(function, is_xla):
    """Return a function of a place that waits for what `function` returns."""
    if BACKEND == "torch":
        return function
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=is_xla, autograph=False)
    import jax

    jitted = jax.jit(function)
    return lambda place: jax.block_until_ready(jitted(place))


def seconds(function, place):
    """Return how long a call takes."""
    start = time.perf_counter()
    function(place)
    return time.perf_counter() - start


def measure(draw, shape, is_xla, rounds):
    """Print the medians of both ways for one function and shape."""
    # On JAX a generator cannot move on within a compiled function.
    seed = 1 if BACKEND == "jax" else keras.random.SeedGenerator(1)

    def plain(place):
        return draw(shape, seed)

    def placed(place):
        with keras_internals.drawing_by(PlacedDraws(place, shape[0])):
            return draw(shape, seed)

    ways, place = [compiled(way, is_xla) for way in (plain, placed)], draws.place(shape[0])
    for way in ways:
        way(place)
    times = [[seconds(way, place) for way in ways] for _ in range(rounds)]
    own, placed_us = (1e6 * statistics.median(each) for each in (zip(*times, strict=True)))
    ratio = statistics.median(after / before for before, after in times)
    name = f"{draw.__name__}{', XLA' if is_xla else ''}"
    print(f"{name:22} {shape!s:14} {own:8.0f} us {placed_us:8.0f} us {ratio:8.2f}", flush=True)


def main(arguments=None):
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args(arguments).rounds
    print(f"{BACKEND}\n{'':22} {'shape':14} {'Keras':>11} {'placed':>11} {'ratio':>8}")
    for is_xla in [False, True] if BACKEND == "tensorflow" else [False]:
        for draw in (dropout, normal, truncated_normal, uniform, randint):
            for shape in SHAPES:
                measure(draw, shape, is_xla, rounds)


if __name__ == "__main__":
    main()
