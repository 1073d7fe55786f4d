"""The fan-in of every weight of Keras' layers, before and after tagging: a table by hand."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import pytest
from keras import layers

from tensorflow_ranger.optimizers import fan_in
from tests.marks import first


class Case(NamedTuple):
    """A layer, and the fan-in of each of its trainable weights, by the path below the layer."""

    id: str
    make: Callable[..., Any]
    shape: tuple
    axes: dict
    # What is known before tagging, where that is less; and what, if the layer has another name.
    untagged: dict = {}  # noqa: RUF012 (never written to)
    renamed: dict = {}  # noqa: RUF012
    call: Callable[..., Any] = lambda layer, x: layer(x)
    lora: int = 0


def of(layer, *args, **kwargs):
    return lambda **more: layer(*args, **kwargs, **more)


def twice(layer, x):
    return layer(x, x)


def listed(layer, x):
    return layer([x, x])


def kernel(*axes):
    return {"kernel": axes, "bias": ()}


def cell(name, *axes):
    return {f"{name}/kernel": axes, f"{name}/recurrent_kernel": axes, f"{name}/bias": ()}


def attention():
    axes: dict[str, tuple] = {f"{name}/kernel": (0,) for name in ("query", "key", "value")}
    axes["attention_output/kernel"] = (0, 1)
    return axes | {path.replace("kernel", "bias"): () for path in axes}


def stacked(**more):
    cells = [layers.LSTMCell(2), layers.GRUCell(2), layers.SimpleRNNCell(2)]
    return layers.RNN(layers.StackedRNNCells(cells), **more)


IN_DOUBT = {"kernel": None}
LORA_IN_DOUBT = {"lora_kernel_a": None, "lora_kernel_b": None}
ATTENTION_IN_DOUBT = {path: None for path in attention() if "kernel" in path}
STACK = "stacked_rnn_cells"
LINE, IMAGE, VOLUME = (6, 3), (5, 5, 3), (4, 4, 4, 3)
# fmt: off
CASES = [
    Case("Dense", of(layers.Dense, 2), (3,), kernel(0)),
    Case("Dense, sequence", of(layers.Dense, 2), (4, 3), kernel(0)),
    Case("Dense, LoRA", of(layers.Dense, 4), (3,),
         {"bias": (), "lora_kernel_a": (0,), "lora_kernel_b": (0,)}, lora=2),
    Case("Conv1D", of(layers.Conv1D, 2, 3), LINE, kernel(0, 1), renamed=IN_DOUBT),
    Case("Conv2D", of(layers.Conv2D, 2, 3), IMAGE, kernel(0, 1, 2), renamed=IN_DOUBT),
    Case("Conv3D", of(layers.Conv3D, 2, 3), VOLUME, kernel(0, 1, 2, 3), renamed=IN_DOUBT),
    Case("Conv2D, groups", of(layers.Conv2D, 6, 2, groups=3), IMAGE, kernel(0, 1, 2),
         renamed=IN_DOUBT),
    Case("Conv2D, LoRA", of(layers.Conv2D, 4, 3), IMAGE,
         {"bias": (), "lora_kernel_a": (0, 1, 2), "lora_kernel_b": (0,)},
         renamed={"lora_kernel_a": None}, lora=2),
    Case("Conv1DTranspose", of(layers.Conv1DTranspose, 2, 3), LINE, kernel(0, 2),
         renamed=IN_DOUBT),
    Case("Conv2DTranspose", of(layers.Conv2DTranspose, 2, 3), IMAGE, kernel(0, 1, 3),
         renamed=IN_DOUBT),
    Case("Conv3DTranspose", of(layers.Conv3DTranspose, 2, 3), VOLUME, kernel(0, 1, 2, 4),
         renamed=IN_DOUBT),
    Case("DepthwiseConv1D", of(layers.DepthwiseConv1D, 3, depth_multiplier=2), LINE,
         kernel(0), renamed=IN_DOUBT),
    Case("DepthwiseConv2D", of(layers.DepthwiseConv2D, 3, depth_multiplier=2), IMAGE,
         kernel(0, 1), renamed=IN_DOUBT),
    Case("SeparableConv1D", of(layers.SeparableConv1D, 2, 3), LINE,
         {"depthwise_kernel": (0,), "pointwise_kernel": (0, 1), "bias": ()}),
    Case("SeparableConv2D", of(layers.SeparableConv2D, 2, 3), IMAGE,
         {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2), "bias": ()}),
    Case("EinsumDense", of(layers.EinsumDense, "...x,xy->...y", 2), (4, 3),
         {"kernel": (0,)}, IN_DOUBT),
    Case("EinsumDense, ellipsis right",
         of(layers.EinsumDense, "abx...,xy->aby...", (4, 2, 3), bias_axes="y"), (4, 3, 3),
         kernel(0), IN_DOUBT),
    Case("EinsumDense, two axes",
         of(layers.EinsumDense, "abc,cde->abde", (4, 2, 5), bias_axes="de"), (4, 3),
         kernel(0), IN_DOUBT, IN_DOUBT),
    Case("EinsumDense, heads first", of(layers.EinsumDense, "btd,ndh->btnh", (4, 2, 5)), (4, 3),
         {"kernel": (1,)}, IN_DOUBT, IN_DOUBT),
    Case("EinsumDense, by position",
         of(layers.EinsumDense, "abc,bcd->abd", (4, 2), bias_axes="bd"), (4, 3),
         kernel(1), IN_DOUBT, IN_DOUBT),
    Case("EinsumDense, no sum", of(layers.EinsumDense, "abc,bcd->abcd", (4, 3, 2)), (4, 3),
         {"kernel": ()}, IN_DOUBT, IN_DOUBT),
    # The price of trusting a renamed layer's rank 2: this one must be tagged.
    Case("EinsumDense, out first", of(layers.EinsumDense, "ab,cb->ac", 2), (3,),
         {"kernel": (1,)}, IN_DOUBT, {"kernel": (0,)}),
    Case("EinsumDense, LoRA", of(layers.EinsumDense, "abc,cde->abde", (4, 2, 5)), (4, 3),
         {"lora_kernel_a": (0,), "lora_kernel_b": (0,)},
         LORA_IN_DOUBT, {"lora_kernel_a": None}, lora=2),
    Case("EinsumDense, in last, LoRA", of(layers.EinsumDense, "abc,dec->abde", (4, 2, 5)), (4, 3),
         {"lora_kernel_a": (2,), "lora_kernel_b": (1,)},
         LORA_IN_DOUBT, {"lora_kernel_a": None, "lora_kernel_b": (0,)}, lora=2),
    Case("MultiHeadAttention", of(layers.MultiHeadAttention, 2, 3), (4, 5),
         attention(), renamed=ATTENTION_IN_DOUBT, call=twice),
    Case("MultiHeadAttention, more axes",
         of(layers.MultiHeadAttention, 2, 3, attention_axes=(1, 2), output_shape=(2, 3)),
         (4, 5, 6), attention(), renamed=ATTENTION_IN_DOUBT, call=twice),
    Case("GroupQueryAttention", of(layers.GroupQueryAttention, 3, 4, 2), (4, 5),
         attention(), renamed=ATTENTION_IN_DOUBT, call=twice),
    Case("Attention", of(layers.Attention, use_scale=True, score_mode="concat"), (4, 3),
         {"scale": (), "concat_score_weight": ()}, call=listed),
    Case("AdditiveAttention", of(layers.AdditiveAttention), (4, 3), {"scale": ()}, call=listed),
    Case("SimpleRNN", of(layers.SimpleRNN, 2), LINE, cell("simple_rnn_cell", 0)),
    Case("GRU", of(layers.GRU, 2), LINE, cell("gru_cell", 0)),
    Case("GRU, one bias", of(layers.GRU, 2, reset_after=False), LINE, cell("gru_cell", 0)),
    Case("LSTM", of(layers.LSTM, 2), LINE, cell("lstm_cell", 0)),
    Case("StackedRNNCells", stacked, LINE,
         cell(f"{STACK}/lstm_cell", 0) | cell(f"{STACK}/gru_cell", 0)
         | cell(f"{STACK}/simple_rnn_cell", 0)),
    Case("Bidirectional", lambda **more: layers.Bidirectional(layers.LSTM(2), **more), LINE,
         cell("forward_lstm/lstm_cell", 0) | cell("backward_lstm/lstm_cell", 0)),
    Case("ConvLSTM1D", of(layers.ConvLSTM1D, 2, 3), (2, *LINE), cell("conv_lstm_cell", 0, 1)),
    Case("ConvLSTM2D", of(layers.ConvLSTM2D, 2, 3), (2, *IMAGE), cell("conv_lstm_cell", 0, 1, 2)),
    Case("ConvLSTM3D", of(layers.ConvLSTM3D, 2, 3), (2, *VOLUME),
         cell("conv_lstm_cell", 0, 1, 2, 3)),
    Case("TimeDistributed",
         lambda **more: layers.TimeDistributed(layers.Conv2DTranspose(2, 3), **more), (2, *IMAGE),
         {"conv2d_transpose/kernel": (0, 1, 3), "conv2d_transpose/bias": ()}),
    Case("SpectralNormalization",
         lambda **more: layers.SpectralNormalization(layers.Conv2D(2, 3), **more), IMAGE,
         {"conv2d/kernel": (0, 1, 2), "conv2d/bias": ()}),
    Case("STFTSpectrogram",
         of(layers.STFTSpectrogram, frame_length=8, frame_step=4, fft_length=8), (16, 1),
         {"real_kernel": (0, 1), "imag_kernel": (0, 1)},
         renamed={"real_kernel": None, "imag_kernel": None}),
    Case("Embedding", of(layers.Embedding, 5, 3), (4,), {"embeddings": ()}),
    Case("Embedding, LoRA", of(layers.Embedding, 5, 3), (4,),
         {"lora_embeddings_a": (), "lora_embeddings_b": ()}, lora=2),
    Case("ReversibleEmbedding", of(layers.ReversibleEmbedding, 5, 3, tie_weights=False), (4,),
         {"embeddings": (), "reverse_embeddings": ()}),
    Case("PReLU", of(layers.PReLU), IMAGE, {"alpha": ()}),
    Case("BatchNormalization", of(layers.BatchNormalization), (3,), {"gamma": (), "beta": ()}),
    Case("GroupNormalization", of(layers.GroupNormalization, 3), IMAGE, {"gamma": (), "beta": ()}),
    Case("LayerNormalization", of(layers.LayerNormalization, axis=[1, 2]), (4, 3),
         {"gamma": (), "beta": ()}),
    Case("RMSNormalization", of(layers.RMSNormalization, axis=[1, 2]), (4, 3), {"scale": ()}),
]
# fmt: on


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request):
    return request.param


class Around(keras.Model):
    """A subclassed model, built by its first call, around a layer."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call_layer = layer, call

    def call(self, x):
        return self.call_layer(self.layer, x)


def functional(case, layer):
    x = keras.Input(case.shape)
    return keras.Model(x, case.call(layer, x))


def in_a_subclass(case, layer):
    x = keras.Input(case.shape)
    return keras.Model(x, Around(Around(layer, case.call), lambda inner, x: inner(x))(x))


def build(case, place=functional, **more):
    """Return a model with the case's layer, and the layer's trainable weights by their path."""
    keras.utils.clear_session(free_memory=False)  # layers are numbered from 0
    layer = case.make(**more)
    model = place(case, layer)
    return model, weights_of(case, layer)


def weights_of(case, layer):
    if case.lora:
        layer.enable_lora(case.lora)
    return {v.path.split(f"{layer.name}/", 1)[1]: v for v in layer.trainable_weights}


def axes_of(weights):
    return {path: fan_in.fan_in_axes(variable) for path, variable in weights.items()}


@pytest.mark.parametrize("place", [functional, in_a_subclass])
def test_the_fan_in_of_a_layer(case, place):
    model, weights = build(case, place)
    assert axes_of(weights) == case.axes | case.untagged
    assert fan_in.tag_fan_in(model) is model
    assert {path: variable.fan_in_axes for path, variable in weights.items()} == case.axes
    assert axes_of(weights) == case.axes
    assert fan_in.centralized_axes(weights.values()) == [case.axes[path] for path in weights]


@first
def test_the_fan_in_of_a_renamed_layer(case):
    model, weights = build(case, name="mine")
    assert axes_of(weights) == case.axes | case.renamed
    fan_in.tag_fan_in(model)
    assert axes_of(weights) == case.axes


@first
def test_the_fan_in_of_a_numbered_layer(case):
    build(case)
    layer = case.make()
    functional(case, layer)
    assert layer.name.endswith("_1")
    weights = weights_of(case, layer)
    assert len(weights) == len(case.axes)
    # Inner layers are numbered too.
    known = {path.replace("_1", ""): axes for path, axes in axes_of(weights).items()}
    assert known == case.axes | case.untagged


# Layers that hold weights of another framework, in a layout that only their author knows.
FOREIGN = {"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"}


def makes_weights(layer, seen=()):
    """Whether the code of a layer's class makes trainable weights, or a layer that does."""
    for base in layer.__mro__[: layer.__mro__.index(layers.Layer)]:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            frozen = any(
                k.arg == "trainable" and ast.unparse(k.value) == "False" for k in node.keywords
            )
            if name in {"add_weight", "add_variable", "Variable"} and not frozen:
                return True
            made = vars(sys.modules[base.__module__]).get(name)
            if (
                inspect.isclass(made)
                and issubclass(made, layers.Layer)
                and made not in (*seen, layer)
                and makes_weights(made, (*seen, layer))
            ):
                return True
    return False


def uncovered(namespace, covered):
    return sorted(
        name
        for name, layer in vars(namespace).items()
        if inspect.isclass(layer)
        and issubclass(layer, layers.Layer)
        and layer is not layers.Layer
        and layer not in covered
        and makes_weights(layer)
    )


def test_every_layer_of_keras_with_trainable_weights_has_a_case():
    covered = {type(layer) for case in CASES for layer in case.make()._flatten_layers()}
    assert set(uncovered(layers, covered)) <= FOREIGN


def test_a_new_layer_with_trainable_weights_would_be_missed():
    class Bilinear(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], shape[-1], 2))

    class Statistics(layers.Layer):
        def build(self, shape):
            self.mean = self.add_weight(shape=(shape[-1],), trainable=False)

    class Namespace:
        new, harmless, dropout = Bilinear, Statistics, layers.Dropout
        nested, old, alias = layers.MultiHeadAttention, layers.Dense, layers.Conv2D

    assert uncovered(Namespace, {layers.Dense}) == ["alias", "nested", "new"]
