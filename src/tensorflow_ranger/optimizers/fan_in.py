"""The fan-in of a weight: the axes that gradient centralization takes a mean over."""

import re
import warnings

import keras
from keras import layers

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

# No sum over inputs, so no fan-in, whatever the rank.
_NEVER = {"bias", "gamma", "beta", "alpha", "scale"}
_NEVER |= {"embeddings", "reverse_embeddings", "lora_embeddings_a", "lora_embeddings_b"}


def tag_fan_in(model):
    """Write on a model's variables which axes are their fan-in.

    An optimizer is given variables, and what the axes of a variable mean is known to its layer
    alone: a kernel of shape ``(3, 3, 8, 8)`` may be a convolution's or its transpose's. Each
    variable of a layer known to Keras gets an attribute `fan_in_axes`, frozen variables too; one
    that has it keeps it. Weights that are added later (LoRA) need another call.

    Args:
        model: A built `keras.Model`, with any layers and models in it.

    Returns:
        The model.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: `model` is not built, or a tag it bears is no tuple of axes.

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
    for layer in model._flatten_layers():
        for variable in layer.weights if isinstance(layer, _KNOWN) else ():
            _tag(variable, _axes_in_layer(layer, variable))
    for variable in model.weights:
        _tag(variable, fan_in_axes(variable))
    return model


def fan_in_axes(variable):
    """Return the axes that one output unit of a variable's layer sums over.

    Args:
        variable: A `keras.Variable`.

    Returns:
        A tuple of axes, ascending unless the user tagged the variable in another order. ``()`` if
        the variable is never centralized. None if neither a tag nor name, path and rank tell.

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
    name = variable.name
    path = [re.sub(r"_\d+$", "", part) for part in variable.path.split("/")[:-1]]
    above, layer = ["", "", *path][-2:]
    if rank <= 1 or name in _NEVER:
        return ()
    if name not in _KERNELS:
        return _BY_NAME.get((name, rank))
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
    axes = [fan_in_axes(variable) for variable in variables]
    doubtful = [
        f"{variable.path} {tuple(variable.shape)}"
        for variable, fan_in in zip(variables, axes, strict=True)
        if fan_in is None
    ]
    if doubtful:
        warnings.warn(
            "Gradient centralization leaves these variables alone, as their names and shapes do "
            f"not tell their fan-in: {', '.join(doubtful)}. Call tag_fan_in(model), or set "
            "variable.fan_in_axes, () for never.",
            stacklevel=2,
        )
    return [fan_in or () for fan_in in axes]


def _tag(variable, axes):
    # Quantized kernels have layouts of their own, and no gradient.
    floating = keras.backend.is_float_dtype(variable.dtype)
    if floating and axes is not None and getattr(variable, "fan_in_axes", None) is None:
        variable.fan_in_axes = axes


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
