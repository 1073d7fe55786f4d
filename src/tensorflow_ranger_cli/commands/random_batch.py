"""A batch of random samples that a model can be trained on."""

import keras
import numpy as np

from tensorflow_ranger_cli.errors import CommandError, UsageError

SEED = 0
CLASS_LOSSES = {  # those whose targets are integers below the number of classes
    "sparse_categorical_crossentropy",
    "SparseCategoricalCrossentropy",
    "categorical_generalized_cross_entropy",
    "CategoricalGeneralizedCrossEntropy",
}


def random_batch(model, samples, length=None) -> tuple:
    """Return random inputs, and targets that the model's losses take.

    Targets of a loss on classes are integers below the size of the output's last axis, and have
    the shape of the others; all other targets are floats of the output's shape.

    Args:
        model: A compiled Keras model.
        samples: Integer >= 1.
        length: Size of the axes that the model leaves free, or None.

    Returns:
        Tuple ``(x, y)`` in the structure of the model's inputs and outputs, or ``(x,)`` for a
        model without compiled losses.

    Raises:
        UsageError: `length` is needed and None, or given and not needed.
        CommandError: The model does not say what its inputs are, or they are neither numbers nor
            booleans.
    """
    generator = np.random.default_rng(SEED)
    x = _inputs(model, samples, length, generator)
    if model.loss is None:
        return (keras.tree.lists_to_tuples(x),)
    outputs = model(keras.tree.map_structure(lambda array: array[:1], x))
    targets = [
        _target(loss, (samples, *output.shape[1:]), generator)
        for loss, output in zip(_losses(model, outputs), keras.tree.flatten(outputs), strict=True)
    ]
    # TensorFlow's data sets take a list for one array.
    return keras.tree.lists_to_tuples((x, keras.tree.pack_sequence_as(outputs, targets)))


def _inputs(model, samples, length, generator):
    inputs = _input_structure(model)
    free = [spec for spec in keras.tree.flatten(inputs) if None in spec.shape[1:]]
    if free and length is None:
        shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in free)
        raise UsageError(
            f"the model leaves the shape of its inputs open: got {shapes}. Give the size of each "
            "None but the first by --length"
        )
    if length is not None and not free:
        raise UsageError(
            f"--length is for inputs of open shape: got {length}, and the model has none. "
            "Leave --length out"
        )
    tokens = _tokens(model)

    def values(spec):
        shape = (samples, *(length if size is None else size for size in spec.shape[1:]))
        if spec.dtype == "bool":
            return generator.integers(0, 2, shape).astype(bool)
        if "int" in spec.dtype:
            return generator.integers(*tokens, shape).astype(spec.dtype)
        if "float" in spec.dtype:
            return generator.random(shape, "float32")  # Keras casts
        raise CommandError(
            f"the model's inputs must be numbers: got {spec.name} of {spec.dtype}. "
            "Plan in Python with data of your own: tensorflow_ranger.microbatch(model, 'auto')"
        )

    return keras.tree.map_structure(values, inputs)


def _input_structure(model):
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise CommandError(
            f"the model must say what its inputs are: got {type(model).__name__}, a subclass that "
            "does not. Plan in Python: tensorflow_ranger.microbatch(model, 'auto')"
        )
    return inputs[0] if isinstance(model, keras.Sequential) else model.input


def _tokens(model):
    """Return the bounds of integers that every layer understands, without 0, which may mask."""
    sizes = [
        layer.input_dim for layer in _layers(model) if isinstance(layer, keras.layers.Embedding)
    ]
    stop = min(sizes, default=2)
    return min(1, stop - 1), stop


def _layers(layer):
    """Yield `layer`, and the layers in models and wrappers within it."""
    yield layer
    for inner in [*getattr(layer, "layers", ()), getattr(layer, "layer", None)]:
        if isinstance(inner, keras.Layer):
            yield from _layers(inner)


def _losses(model, outputs):
    """Return a loss, or None, for each output."""
    loss, count = model.loss, len(keras.tree.flatten(outputs))
    if isinstance(loss, dict):
        # An output may be called by its key in the outputs, or by its layer.
        names = sorted(outputs) if isinstance(outputs, dict) else model.output_names
        return [loss.get(name) for name in names]
    return list(loss) if isinstance(loss, list | tuple) else [loss] * count


def _target(loss, shape, generator):
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if name in CLASS_LOSSES:
        return generator.integers(0, shape[-1], shape[:-1]).astype("int32")
    return generator.random(shape, "float32")
