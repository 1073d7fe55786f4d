"""The fan-in of a weight, read from what a layer's output depends on."""

import inspect
import itertools

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import gradients

_ROWS = 16  # a ReLU leaves most of them without a gradient at one weight or at the other
_PAIRS = 3
_UNKNOWN_SIZE = 16  # of an axis that the layer was built without


def axes_by_call(layer, variable):
    """Return the axes over which a layer sums its inputs times a weight.

    The layer is called on random numbers of the shapes that it was built for. Of one entry y of its
    output, the gradient ``dy/dw`` tells which weights y depends on. If w enters y through one sum
    alone, ``y = f(sum_i h_i w_i)``, the gradient is ``f' h``, in the same direction at any w; and
    the axes along which h has several entries are the fan-in. A layer that looks up one entry of w,
    as in an embedding or a class token, has none.

    Neither the layer's state nor the seeds of Keras change.

    Args:
        layer: A built `keras.layers.Layer`.
        variable: A floating `keras.Variable` of its own.

    Returns:
        A tuple of axes, ascending; ``()`` if y depends on one entry. None if the call does not
        tell: it fails on such inputs, w is part of another expression (normalized weights, gates,
        a second product with weights), or y does not depend on it.
    """
    try:
        return _axes(layer, variable)
    except Exception:  # The layer is anyone's, and so is what it raises on inputs it does not know.
        return None


def summed_axes(pairs, tolerance=1e-8):
    """Return the axes that one sum of weighted inputs goes over.

    Args:
        pairs: List of pairs of arrays like the weight, not all zero: the gradients of an entry of
            the output at one weight and at another. Each pair has an input of its own.
        tolerance: Float; for how far from 1 the cosine of a pair may be.

    Returns:
        As `axes_by_call`.
    """
    seen = [np.abs(gradient) > 1e-6 * np.abs(gradient).max() for gradient, _ in pairs]
    if all(entries.sum() == 1 for entries in seen):
        return ()
    if any(abs(_cosine(*pair)) < 1 - tolerance for pair in pairs):
        return None
    extents = [len(set(indices)) for indices in np.nonzero(np.any(seen, axis=0))]
    axes = tuple(axis for axis, extent in enumerate(extents) if extent > 1)
    # Where every entry of the output sees the whole weight, a second product follows the first.
    return axes if len(axes) < len(extents) else None


def _axes(layer, variable):
    rng = np.random.default_rng(0)
    args, kwargs = _inputs(layer, rng)
    weight = np.asarray(ops.convert_to_numpy(variable), "float32")
    other = weight + rng.normal(0, weight.std() or 1.0, weight.shape).astype("float32")

    def output(value):
        with keras.StatelessScope(state_mapping=[(variable, value)]):
            return keras.tree.flatten(layer(*args, **kwargs))[0]

    def gradient(value, index):
        value = ops.convert_to_tensor(value, variable.dtype)
        slope = gradients.gradient(lambda w: ops.cast(output(w)[index], "float32"), value)
        return np.zeros(weight.shape) if slope is None else _array(slope)

    _, *shape = ops.shape(output(ops.convert_to_tensor(weight, variable.dtype)))
    # The middle first, where a convolution sees no border.
    places = [[size // 2 for size in shape], [0] * len(shape), [size - 1 for size in shape]]
    # Rounding to bfloat16 turns a gradient by less than an angle of 2 ** -7.
    tolerance = 1e-8 if layer.compute_dtype in ("float32", "float64") else 2**-14
    for place in places:
        rows = ((row, *place) for row in range(_ROWS))
        pairs = ((gradient(weight, index), gradient(other, index)) for index in rows)
        pairs = (pair for pair in pairs if all(slope.any() for slope in pair))
        if pairs := list(itertools.islice(pairs, _PAIRS)):
            return summed_axes(pairs, tolerance)
    return None


def _inputs(layer, rng):
    """Return positional and keyword arguments of the shapes that the layer was built for."""

    def random(shape):
        sizes = [_UNKNOWN_SIZE if size is None else size for size in shape[1:]]
        return ops.convert_to_tensor(rng.uniform(-1, 1, (_ROWS, *sizes)).astype("float32"))

    shapes = layer.get_build_config()
    named = keras.tree.map_shape_structure(random, shapes.get("shapes_dict", {}))
    if named:
        return (), {name.removesuffix("_shape"): value for name, value in named.items()}
    inputs = keras.tree.map_shape_structure(random, shapes["input_shape"])
    if not _is_cell(layer):
        return (inputs,), {}
    sizes = layer.state_size if isinstance(layer.state_size, tuple | list) else [layer.state_size]
    shapes = [size if isinstance(size, tuple | list) else (size,) for size in sizes]
    return (inputs, [random((None, *shape)) for shape in shapes]), {}


def _is_cell(layer):
    """Return whether a layer is called as `keras.layers.RNN` calls cells, on inputs and states."""
    needed = [
        parameter
        for parameter in inspect.signature(layer.call).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return hasattr(layer, "state_size") and len(needed) == 2


def _array(slope):
    slope = np.asarray(ops.convert_to_numpy(ops.cast(slope, "float32")), "float64")
    return np.where(np.isfinite(slope), slope, 0.0)


def _cosine(one, two):
    return np.vdot(one, two) / np.sqrt(np.vdot(one, one) * np.vdot(two, two))
