"""What is measured of a batch: its samples, its time and its memory."""

import time

import keras

from tensorflow_ranger.backend import arrays, replicas, steps


def bytes_in_use():
    """Return the bytes in use now, or 0 where nobody knows; the peak begins here."""
    arrays.reset_peak_memory()
    return arrays.peak_memory() or 0


def start_clock():
    """Return the time at which a measurement begins."""
    arrays.reset_peak_memory()
    return time.perf_counter()


def measured(begun, logs):
    """Return the seconds since `begun` and the bytes in use at most, or nothing without a clock."""
    if begun is None:
        return ()
    arrays.wait(next(iter(keras.tree.flatten(logs))))
    return time.perf_counter() - begun, arrays.peak_memory()


def samples_of(data):
    """Return the number of samples of a batch."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    counts = {steps.rows(leaf) for leaf in leaves}
    if len(counts) > 1 or counts == {-1}:
        raise ValueError(
            "The arrays of a batch must have one leading axis, its samples: got shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}. If these are single samples, batch the "
            "data set first, as by dataset.batch(64)."
        )
    return int(counts.pop())


def rows_known_to_graph(iterator, model):
    """Return the samples of a batch as Keras' own graph knows them: a number, "all", or None."""
    # Keras weighs the losses of several outputs by the batch's size where its graph knows it, and
    # each batch alike where it does not: its History is to be the same.
    spec = getattr(iterator, "element_spec", None)
    if spec is None or model.run_eagerly:
        return "all"
    if replicas.has_several(model.variables):
        return None
    shapes = [getattr(leaf, "shape", None) for leaf in keras.tree.flatten(spec)]
    return next(shape for shape in shapes if shape is not None)[0]
