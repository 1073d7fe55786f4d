"""The fan-in of a weight: the axes that gradient centralization takes a mean over."""

import re
import warnings

import keras
from keras import layers

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.optimizers.fan_in_by_call import axes_by_call

# Kernels of rank 3 or more: the layer, its name in a variable's path unless the user chose another,
# the kernel's rank, its fan-in. A kernel of rank 2 is (in, out), except for some of EinsumDense.
_LAYERS = (
    (layers.Conv1D, "conv1d", 3, (0, 1)),
    (layers.Conv2D, "conv2d", 4, (0, 1, 2)),
    (layers.Conv3D, "conv3d", 5, (0, 1, 2, 3)),
    # (*space, out, in)
    (layers.Conv1DTranspose, "conv1d_transpose", 3, (0, 2)),
    (layers.Conv2DTranspose, "conv2d_transpose", 4, (0, 1, 3)),
    (layers.Conv3DTranspose, "conv3d_transpose", 5, (0, 1, 2, 4)),
    # (*space, in, multiplier): every channel has filters of its own, which see nothing else
    (layers.DepthwiseConv1D, "depthwise_conv1d", 3, (0,)),
    (layers.DepthwiseConv2D, "depthwise_conv2d", 4, (0, 1)),
    # Keras does not export the cell, which holds the kernels.
    (layers.ConvLSTM1D, "conv_lstm_cell", 3, (0, 1)),
    (layers.ConvLSTM2D, "conv_lstm_cell", 4, (0, 1, 2)),
    (layers.ConvLSTM3D, "conv_lstm_cell", 5, (0, 1, 2, 3)),
    (layers.STFTSpectrogram, "stft_spectrogram", 3, (0, 1)),
)
_KERNELS = {"kernel", "recurrent_kernel", "lora_kernel_a", "lora_kernel_b"}
_KERNELS |= {"real_kernel", "imag_kernel"}  # of STFTSpectrogram
_BY_PATH = {(name, rank): axes for _, name, rank, axes in _LAYERS}
_KNOWN = (layers.EinsumDense, *(layer for layer, *_ in _LAYERS))

# Variables whose name is enough, with their rank: those of SeparableConv.
_BY_NAME = {
    ("depthwise_kernel", 3): (0,),
    ("depthwise_kernel", 4): (0, 1),
    ("pointwise_kernel", 3): (0, 1),
    ("pointwise_kernel", 4): (0, 1, 2),
}

# Kernels (in, heads, size) and (heads, size, *out), below Keras' own attention layers. Others give
# their layers the same names and their kernels another layout, so "attention" would not do.
_ATTENTION = {"multi_head_attention", "grouped_query_attention"}
_PROJECTIONS = {
    **dict.fromkeys(("query", "key", "value", "gate"), (0,)),
    "attention_output": (0, 1),
}
_TOGETHER = ("query", "key", "value", "attention_output")

# No sum over inputs, so no fan-in, whatever the rank: the last word of `relative_position_bias`,
# `class_token`, `rel_pos_h`, `lora_embeddings_a`.
_NEVER = {"bias", "gamma", "beta", "alpha", "scale", "table"}
_NEVER |= {"embed", "embedding", "embeddings", "codebook", "codebooks"}
_NEVER |= {"pos", "position", "positions", "token", "tokens"}


def tag_fan_in(model: keras.Model) -> keras.Model:
    """Write on a model's variables which axes are their fan-in.

    An optimizer is given variables, and what the axes of a variable mean is known to its layer
    alone: a kernel of shape ``(3, 3, 8, 8)`` may be a convolution's or its transpose's. Without
    tags an optimizer goes by names, paths and shapes, names in one warning what these leave in
    doubt, and does not centralize it. Nothing but this function and you write tags, so `fit` takes
    the same path with and without `microbatch`.

    Each variable whose fan-in is known gets an attribute `fan_in_axes`, frozen variables too; one
    that has it keeps it. Keras' own layers are known. A layer of another class, if its weights are
    in doubt, is called on a few random inputs of the shape that it was built for: the gradient of
    one entry of its output tells the fan-in of a weight that is multiplied with the inputs and
    summed. State and seeds are left as they are. What remains in doubt gets no tag.

    Call it before the first update, at which an optimizer reads the tags. They are not saved: a
    loaded model needs another call, and so do weights that are added later (LoRA).

    Args:
        model: A built `keras.Model`, with any layers and models in it.

    Returns:
        The model.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: `model` is not built, or a variable's `fan_in_axes` is no tuple of its axes.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2DTranspose(4, 3)])
        >>> tag_fan_in(model).weights[0].fan_in_axes
        (0, 1, 3)

    References:
        Yong et al., 2020, Gradient Centralization, section 3.1. https://arxiv.org/abs/2004.01461
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"model must be a keras.Model: got {model!r}. Put a layer into keras.Sequential, or "
            "set fan_in_axes on its variables."
        )
    if not model.built:
        raise ValueError(
            f"model must be built, as its variables are to be tagged: got {model.name!r}, which is "
            "not. Call it on a batch or call model.build(input_shape) first."
        )
    inner_first = keras_internals.layers_of(model)[::-1]
    for layer in inner_first:
        for variable in layer.weights if isinstance(layer, _KNOWN) else ():
            _tag(variable, _axes_in_layer(layer, variable))
    for variable in model.weights:
        _tag(variable, fan_in_axes(variable))
    asked = set()
    for layer in inner_first:
        for variable in layer.weights:
            if _is_open(variable) and id(variable) not in asked:
                asked.add(id(variable))
                _tag(variable, axes_by_call(layer, variable))
    return model


def fan_in_axes(variable):
    """Return the axes that one output unit of a variable's layer sums over.

    Args:
        variable: A `keras.Variable`.

    Returns:
        A tuple of axes, ascending unless the user tagged the variable in another order. ``()`` if
        the variable is never centralized. None if neither a tag nor name, path and shape tell.

    Raises:
        ValueError: The variable's tag is no tuple of its axes.

    References:
        Yong et al., 2020, Gradient Centralization, section 3.1. https://arxiv.org/abs/2004.01461
    """
    rank = len(variable.shape)
    tag = getattr(variable, "fan_in_axes", None)
    if tag is not None:
        if not isinstance(tag, tuple | list) or len(set(tag) & set(range(rank))) < len(tag):
            raise ValueError(
                f"fan_in_axes must be a tuple of different axes, each from 0 to {rank - 1}: got "
                f"{tag!r} for {variable.path}. Use () to leave the variable alone."
            )
        return tuple(tag)
    name, words = variable.name, re.findall(r"[a-z]{2,}", variable.name)
    path = [re.sub(r"_\d+$", "", part) for part in variable.path.split("/")[:-1]]
    above, layer = ["", "", *path][-2:]
    if rank <= 1 or _NEVER.intersection(words[-1:]):
        return ()
    if name not in _KERNELS:
        # A leading 1 broadcasts over the batch: class tokens (1, 1, size), positions (1, time,
        # size), factors (1, units).
        broadcast = variable.shape[0] == 1
        return _BY_NAME.get((name, rank), () if broadcast else None)
    if rank == 2:
        return None if layer == "einsum_dense" else (0,)
    if above in _ATTENTION:
        return _PROJECTIONS.get(layer)
    return _BY_PATH.get((layer, rank))


def centralized_axes(variables):
    """Return the axes over which each variable's gradient is centralized.

    Args:
        variables: The `keras.Variable`s of an optimizer.

    Returns:
        A list with a tuple of axes for each variable, ``()`` for one whose fan-in is in doubt.
        These are named in one warning.

    Raises:
        ValueError: The tag of a variable is no tuple of its axes.

    References:
        Yong et al., 2020, Gradient Centralization, section 3.1. https://arxiv.org/abs/2004.01461
    """
    variables = list(variables)
    together = _axes_of_attention(variables)
    axes = [
        together.get(id(variable)) if alone is None else alone
        for variable, alone in zip(variables, map(fan_in_axes, variables), strict=True)
    ]
    doubtful = [
        f"{variable.path} {tuple(variable.shape)}"
        for variable, fan_in in zip(variables, axes, strict=True)
        if fan_in is None
    ]
    if doubtful:
        warnings.warn(
            "Gradient centralization leaves these variables alone, as their names and shapes do "
            f"not tell their fan-in: {', '.join(doubtful)}. Before the first update, call "
            "tag_fan_in(model) or set variable.fan_in_axes, () for never.",
            stacklevel=2,
        )
    return [fan_in or () for fan_in in axes]


def _axes_of_attention(variables):
    """Return, by id, the fan-in of kernels that fit together as those of `MultiHeadAttention`.

    In most models an attention has a name of its own, and its kernels' names alone leave their
    layout in doubt. Their shapes do not: query is (in, heads, size) and attention_output (heads,
    size, out). With the heads first, query's last two axes would be (in, size).
    """
    groups = {}
    for variable in variables:
        above, _, name = variable.path.removesuffix("/kernel").rpartition("/")
        if variable.path.endswith("/kernel") and name in _PROJECTIONS:
            groups.setdefault(above, {}).setdefault(name, []).append(variable)
    axes = {}
    for group in groups.values():
        shapes = {name: {tuple(v.shape) for v in kernels} for name, kernels in group.items()}
        if all(len(shapes.get(name, ())) == 1 for name in _TOGETHER) and _fit(
            *(next(iter(shapes[name])) for name in _TOGETHER)
        ):
            kernels = [(name, kernel) for name in _TOGETHER for kernel in group[name]]
            axes |= {id(kernel): _PROJECTIONS[name] for name, kernel in kernels}
    return axes


def _fit(query, key, value, output):
    if any(len(shape) != 3 for shape in (query, key, value, output)):
        return False
    heads_last = query[0] != query[1] == output[0]
    return heads_last and key[1:] == (value[1], query[2]) and value[2] == output[1]


def _tag(variable, axes):
    if axes is not None and _is_open(variable):
        variable.fan_in_axes = axes


def _is_open(variable):
    # Quantized kernels have layouts of their own, and no gradient.
    floating = keras.backend.is_float_dtype(variable.dtype)
    return floating and getattr(variable, "fan_in_axes", None) is None


def _axes_in_layer(layer, variable):
    """Return the fan-in of a variable of a layer in `_KNOWN`, None where its name is enough."""
    if variable.name not in _KERNELS:
        return None
    if isinstance(layer, layers.EinsumDense):
        return _einsum_axes(layer.equation, variable.name)
    rank = len(variable.shape)
    return next((a for c, _, r, a in _LAYERS if isinstance(layer, c) and r == rank), None)


def _einsum_axes(equation, name):
    _, _, specification = equation.partition(",")
    kernel, _, output = specification.partition("->")
    axes = tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    if name == "lora_kernel_b":
        # kernel[..., z] += sum_r a[..., r] b[r, z]. If the layer sums over z, then b comes first,
        # from z to r, and a sums over r; else a comes first, and b goes from r to z. Either way
        # the axes of a are those of the kernel.
        return (1,) if len(kernel) - 1 in axes else (0,)
    return axes
