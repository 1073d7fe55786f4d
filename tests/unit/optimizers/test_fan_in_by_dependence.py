"""The fan-in of Keras' layers, asked of the layers: which weights each output unit depends on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import layers

from tensorflow_ranger.optimizers import fan_in


def of(layer, *args, **kwargs):
    return lambda: layer(*args, **kwargs)


def identity(shape):
    return np.eye(math.prod(shape[:-1]), shape[-1]).reshape(shape)


class Question(NamedTuple):
    """A layer that is linear in `weight`; its other weights are 0, or what `others` says."""

    id: str
    make: Callable[..., Any]
    shape: tuple
    weight: str = "kernel"
    others: dict = {}  # noqa: RUF012
    # The axes of the output that count units. Over the others a kernel is shared.
    units: tuple = (-1,)
    lora: int = 0


def projection(name):
    attention = layers.MultiHeadAttention(2, 3)
    attention.build((None, 4, 5), (None, 4, 5))
    return getattr(attention, name)


A_TO_UNITS = ("lora_kernel_a", {"lora_kernel_b": identity})
B_TO_UNITS = ("lora_kernel_b", {"lora_kernel_a": np.ones})
# fmt: off
QUESTIONS = [
    Question("Dense", of(layers.Dense, 2), (3,)),
    Question("Dense, LoRA a", of(layers.Dense, 4), (3,), *A_TO_UNITS, lora=4),
    Question("Dense, LoRA b", of(layers.Dense, 4), (3,), *B_TO_UNITS, lora=2),
    Question("Conv1D", of(layers.Conv1D, 2, 2), (4, 2)),
    Question("Conv2D", of(layers.Conv2D, 2, 2), (3, 3, 2)),
    Question("Conv1D, groups", of(layers.Conv1D, 4, 2, groups=2), (4, 4)),
    Question("Conv2D, LoRA a", of(layers.Conv2D, 2, 2), (3, 3, 2), *A_TO_UNITS, lora=2),
    Question("Conv2D, LoRA b", of(layers.Conv2D, 3, 2), (3, 3, 2), *B_TO_UNITS, lora=2),
    Question("Conv3D", of(layers.Conv3D, 2, 2), (3, 3, 3, 2)),
    Question("Conv1DTranspose", of(layers.Conv1DTranspose, 2, 2), (4, 2)),
    Question("Conv2DTranspose", of(layers.Conv2DTranspose, 2, 2), (3, 3, 2)),
    Question("Conv3DTranspose", of(layers.Conv3DTranspose, 2, 2), (3, 3, 3, 2)),
    Question("DepthwiseConv1D", of(layers.DepthwiseConv1D, 2, depth_multiplier=2), (4, 2)),
    Question("DepthwiseConv2D", of(layers.DepthwiseConv2D, 2, depth_multiplier=2), (3, 3, 2)),
    Question("SeparableConv1D, depthwise", of(layers.SeparableConv1D, 4, 2, depth_multiplier=2),
             (4, 2), "depthwise_kernel", {"pointwise_kernel": identity}),
    Question("SeparableConv2D, depthwise", of(layers.SeparableConv2D, 4, 2, depth_multiplier=2),
             (3, 3, 2), "depthwise_kernel", {"pointwise_kernel": identity}),
    Question("SeparableConv2D, pointwise", of(layers.SeparableConv2D, 3, 2), (3, 3, 2),
             "pointwise_kernel", {"depthwise_kernel": np.ones}),
    Question("EinsumDense", of(layers.EinsumDense, "...x,xy->...y", 2), (4, 3)),
    Question("EinsumDense, out first", of(layers.EinsumDense, "ab,cb->ac", 2), (3,)),
    Question("EinsumDense, ellipsis right", of(layers.EinsumDense, "abx...,xy->aby...", (4, 2, 5)),
             (4, 3, 5), units=(2,)),
    Question("EinsumDense, two axes", of(layers.EinsumDense, "abc,cde->abde", (4, 2, 5)), (4, 3),
             units=(2, 3)),
    Question("EinsumDense, heads first", of(layers.EinsumDense, "btd,ndh->btnh", (4, 2, 5)), (4, 3),
             units=(2, 3)),
    Question("EinsumDense, by position", of(layers.EinsumDense, "abc,bcd->abd", (4, 2)), (4, 3),
             units=(1, 2)),
    Question("EinsumDense, no sum", of(layers.EinsumDense, "abc,bcd->abcd", (4, 3, 2)), (4, 3),
             units=(1, 2, 3)),
    Question("EinsumDense, LoRA a", of(layers.EinsumDense, "abc,cde->abde", (4, 2, 5)), (4, 3),
             *A_TO_UNITS, units=(2, 3), lora=5),
    Question("EinsumDense, LoRA b", of(layers.EinsumDense, "abc,cd->abd", (4, 5)), (4, 3),
             *B_TO_UNITS, lora=2),
    Question("EinsumDense, in last, LoRA a", of(layers.EinsumDense, "abc,dec->abde", (4, 2, 3)),
             (4, 3), "lora_kernel_a", {"lora_kernel_b": np.ones}, units=(2, 3), lora=2),
    Question("EinsumDense, in last, LoRA b", of(layers.EinsumDense, "ab,cb->ac", 4), (3,),
             "lora_kernel_b", {"lora_kernel_a": identity}, lora=4),
    Question("MultiHeadAttention, query", lambda: projection("query_dense"), (4, 5), units=(2, 3)),
    Question("MultiHeadAttention, output", lambda: projection("output_dense"), (4, 2, 3)),
    Question("SimpleRNN", of(layers.SimpleRNN, 2), (1, 3)),
    Question("SimpleRNN, recurrent", of(layers.SimpleRNN, 2), (2, 2), "recurrent_kernel",
             {"kernel": np.ones}),
    Question("STFTSpectrogram",
             of(layers.STFTSpectrogram, "real", frame_length=4, frame_step=2, fft_length=4),
             (16, 1), "real_kernel"),
]
# fmt: on


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_a_unit_depends_on_one_slice_along_the_fan_in(question):
    layer = question.make()
    x = np.random.default_rng(0).uniform(0.5, 1.5, (2, *question.shape)).astype("float32")
    layer(x)
    if question.lora:
        layer.enable_lora(question.lora)
    fan_in.tag_fan_in(keras.Sequential([keras.Input(question.shape), layer]))
    weights = {variable.name: variable for variable in layer.weights}
    for name, variable in weights.items():
        variable.assign(question.others.get(name, np.zeros)(tuple(variable.shape)))
    background = np.asarray(keras.ops.convert_to_numpy(layer(x)))

    weight = weights[question.weight]
    indices = list(np.ndindex(*weight.shape))
    units = [axis % background.ndim for axis in question.units]
    positions = tuple(axis for axis in range(background.ndim) if axis not in units)
    depends = []  # weight by unit
    for index in indices:
        one_hot = np.zeros(weight.shape)
        one_hot[index] = 1
        weight.assign(one_hot)
        moved = np.abs(keras.ops.convert_to_numpy(layer(x)) - background) > 1e-2
        depends.append(moved.any(axis=positions).ravel())

    axes = weight.fan_in_axes
    fan_in_size = math.prod(weight.shape[axis] for axis in axes)
    slices = set()
    for unit in np.transpose(depends):
        sees = [index for index, moved in zip(indices, unit, strict=True) if moved]
        (slice_,) = {tuple(np.delete(index, axes)) for index in sees}
        assert len(sees) == fan_in_size
        slices.add(slice_)
    assert len(slices) == len(indices) / fan_in_size
