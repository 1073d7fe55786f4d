"""Which axes an output unit sums over: a table by hand, and the layers themselves asked."""

import ast
import inspect
import math
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import layers

from tensorflow_ranger.optimizers import fan_in


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


def test_the_fan_in_of_a_renamed_layer(case):
    model, weights = build(case, name="mine")
    assert axes_of(weights) == case.axes | case.renamed
    fan_in.tag_fan_in(model)
    assert axes_of(weights) == case.axes


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


class Own(layers.Layer):
    """A layer of the user's."""

    def __init__(self, weight, shape, **more):
        super().__init__(**more)
        self.weight_name, self.weight_shape = weight, shape

    def build(self, _):
        self.weight = self.add_weight(name=self.weight_name, shape=self.weight_shape)

    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("weight", "shape", "axes"),
    [
        ("w", (), ()),
        ("w", (3,), ()),
        ("w", (3, 4), None),
        ("kernel", (3, 4), (0,)),
        ("kernel", (3, 4, 5), None),
        ("kernel", (2, 2, 3, 4), None),
        ("recurrent_kernel", (3, 4, 5), None),
        ("depthwise_kernel", (3, 4), None),
        ("gamma", (3, 4), ()),
    ],
)
def test_a_layer_of_the_users_own(weight, shape, axes):
    model = keras.Sequential([keras.Input((3,)), Own(weight, shape)])
    assert fan_in.fan_in_axes(model.weights[0]) == axes
    fan_in.tag_fan_in(model)
    assert fan_in.fan_in_axes(model.weights[0]) == axes
    assert hasattr(model.weights[0], "fan_in_axes") == (axes is not None)


@pytest.mark.parametrize(
    ("name", "shape"), [("dense", (2, 3, 4)), ("conv2d", (2, 3, 4)), ("conv1d", (2, 2, 3, 4))]
)
def test_a_name_counts_only_with_its_rank(name, shape):
    model = keras.Sequential([keras.Input((3,)), Own("kernel", shape, name=name)])
    assert fan_in.fan_in_axes(model.weights[0]) is None


def test_a_query_is_known_only_below_the_attention_of_keras():
    class Attention(layers.Layer):
        def __init__(self):
            super().__init__(name="attention")
            self.query = layers.EinsumDense("btd,ndh->btnh", (4, 2, 5), name="query")

        def call(self, x):
            return self.query(x)

    model = keras.Sequential([keras.Input((4, 3)), Attention()])
    (query,) = model.weights
    assert query.path.endswith("/attention/query/kernel")
    assert fan_in.fan_in_axes(query) is None
    assert fan_in.fan_in_axes(fan_in.tag_fan_in(model).weights[0]) == (1,)


def conv(**more):
    return keras.Sequential([keras.Input(IMAGE), layers.Conv2D(2, 3, **more)])


@pytest.mark.parametrize("tag", [(), (3,), (2, 0), [0, 1]])
def test_a_tag_of_the_users_is_kept(tag):
    model = conv()
    model.weights[0].fan_in_axes = tag
    fan_in.tag_fan_in(model)
    assert model.weights[0].fan_in_axes is tag
    assert fan_in.fan_in_axes(model.weights[0]) == tuple(tag)
    assert fan_in.centralized_axes(model.weights) == [tuple(tag), ()]


@pytest.mark.parametrize("tag", [0, "0", (4,), (-1,), (0, 0), (0.5,)])
def test_a_tag_that_is_no_axes_is_refused(tag):
    model = conv(name="mine")
    model.weights[0].fan_in_axes = tag
    with pytest.raises(ValueError, match=r"each from 0 to 3: got .* for .*mine/kernel\. Use \(\)"):
        fan_in.centralized_axes(model.weights)


def test_frozen_weights_are_tagged():
    model = conv(name="mine")
    model.trainable = False
    fan_in.tag_fan_in(model)
    model.trainable = True
    assert fan_in.centralized_axes(model.trainable_variables) == [(0, 1, 2), ()]


def test_a_shared_layer_is_tagged():
    shared = layers.Conv1DTranspose(3, 3, name="mine")
    first, second = (keras.Sequential([keras.Input((None, 3)), shared]) for _ in range(2))
    fan_in.tag_fan_in(keras.Sequential([keras.Input((None, 3)), first, second]))
    assert fan_in.fan_in_axes(shared.kernel) == (0, 2)


def test_a_subclass_of_a_layer_is_tagged():
    class Up(layers.Conv2DTranspose):
        pass

    model = keras.Sequential([keras.Input(IMAGE), Up(2, 3)])
    assert fan_in.fan_in_axes(model.weights[0]) is None
    assert fan_in.fan_in_axes(fan_in.tag_fan_in(model).weights[0]) == (0, 1, 3)


def test_a_quantized_kernel_is_not_tagged():
    model = keras.Sequential([keras.Input((4, 3)), layers.EinsumDense("abc,dec->abde", (4, 2, 6))])
    model.layers[0].quantize("int8")
    model.layers[0].enable_lora(2)
    fan_in.tag_fan_in(model)
    tagged = {v.name: v.fan_in_axes for v in model.weights if hasattr(v, "fan_in_axes")}
    assert tagged.pop("kernel_scale", ()) == ()
    assert tagged == {"lora_kernel_a": (2,), "lora_kernel_b": (1,)}


def test_what_is_in_doubt_is_named_once():
    model = keras.Sequential(
        [
            keras.Input(IMAGE),
            layers.Conv2D(2, 3, name="stem"),
            layers.Conv2D(2, 1),
            layers.Conv2DTranspose(2, 3, name="head"),
        ]
    )
    message = (
        r"leaves these variables alone.*: \S*stem/kernel \(3, 3, 3, 2\), "
        r"\S*head/kernel \(3, 3, 2, 2\)\. Call tag_fan_in\(model\), or set variable\.fan_in_axes"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        axes = fan_in.centralized_axes(v for v in model.trainable_variables)
    assert axes == [(), (), (0, 1, 2), (), (), ()]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    fan_in.tag_fan_in(model)
    # No warning now: it would be an error.
    axes = fan_in.centralized_axes(model.trainable_variables)
    assert axes == [(0, 1, 2), (), (0, 1, 2), (), (0, 1, 3), ()]


@pytest.mark.parametrize("model", [None, keras.Sequential, layers.Dense(2)])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=r"must be a keras\.Model: got .*Put a layer into"):
        fan_in.tag_fan_in(model)


@pytest.mark.parametrize(
    "model", [lambda: keras.Sequential([layers.Dense(2)]), lambda: Around(layers.Dense(2), None)]
)
def test_an_unbuilt_model_is_refused(model):
    with pytest.raises(ValueError, match=r"must be built.*Call it on a batch or call model\.build"):
        fan_in.tag_fan_in(model())


@pytest.mark.skipif(keras.config.backend() != "torch", reason="a layer of torch")
def test_the_weights_of_a_torch_module_are_in_doubt():
    import torch

    wrapped = layers.TorchModuleWrapper(torch.nn.Linear(3, 2))
    assert [fan_in.fan_in_axes(variable) for variable in wrapped.weights] == [None, ()]


@pytest.mark.skipif(keras.config.backend() != "jax", reason="a layer of jax")
def test_the_weights_of_a_jax_function_are_in_doubt():
    def call(params, inputs):
        return inputs @ params["kernel"] + params["bias"]

    params = {"bias": np.zeros(2, "float32"), "kernel": np.ones((3, 2), "float32")}
    wrapped = layers.JaxLayer(call, params=params)
    assert [fan_in.fan_in_axes(variable) for variable in wrapped.weights] == [(), None]
