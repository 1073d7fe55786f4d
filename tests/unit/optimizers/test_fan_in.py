"""What names, paths, shapes and tags say of the fan-in, and what is named as in doubt."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

from tensorflow_ranger.optimizers import fan_in

IMAGE = (5, 5, 3)


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
        ("embedding", (9, 4), ()),
        ("rel_embedding", (9, 4), ()),
        ("codebook", (9, 4), ()),
        ("class_token", (1, 1, 4), ()),
        ("prompt_tokens_2", (5, 4), ()),
        ("pos_embed", (5, 4), ()),
        ("rel_pos_h", (5, 4), ()),
        ("relative_position_bias_table", (9, 2), ()),
        ("token_kernel", (3, 4), None),
        ("variable", (1, 1, 4), ()),
        ("w_tau", (1, 4), ()),
        ("w", (2, 1, 4), None),
        ("kernel", (1, 1, 4), None),
        ("pointwise_kernel", (1, 3, 4), (0, 1)),
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


class Projections(layers.Layer):
    """The kernels of an attention, of any shapes."""

    def __init__(self, shapes, **more):
        super().__init__(**more)
        names = ("query", "key", "value", "attention_output")
        self.parts = [
            Own("kernel", shape, name=name) for name, shape in zip(names, shapes, strict=False)
        ]

    def build(self, _):
        for part in self.parts:
            part.build(None)

    def call(self, x):
        return x


HEADS_LAST = [(8, 2, 4), (8, 2, 4), (8, 2, 3), (2, 3, 8)]


@pytest.mark.parametrize(
    ("shapes", "known"),
    [
        (HEADS_LAST, True),
        ([(8, 4, 2), (6, 1, 2), (6, 1, 2), (4, 2, 8)], True),  # grouped queries, of other inputs
        (HEADS_LAST[:3], False),  # nothing says where the heads are
        ([(2, 8, 4), (2, 8, 4), (2, 8, 4), (2, 4, 8)], False),  # heads first
        ([(2, 2, 4), (2, 2, 4), (2, 2, 4), (2, 4, 2)], False),  # either
        ([(8, 2, 4), (8, 2, 4), (8, 2, 4), (8, 8)], False),
    ],
)
def test_an_attention_of_any_name_is_known_by_its_shapes(shapes, known):
    mine = [Projections(shapes, name=name) for name in ("self_attn", "cross_attn")]
    kernels = [
        variable
        for variable in keras.Sequential([keras.Input((3,)), *mine]).weights
        if len(variable.shape) == 3
    ]
    with contextlib.nullcontext() if known else pytest.warns(UserWarning, match="cross_attn"):
        axes = fan_in.centralized_axes(kernels)
    assert axes == ([(0,), (0,), (0,), (0, 1)] * 2 if known else [()] * len(kernels))


def test_attentions_under_one_path_are_known_if_they_are_alike():
    def kernels(*shapes):
        attentions = [Projections(of_one, name="attention") for of_one in shapes]
        for attention in attentions:
            attention.build(None)
        return [variable for attention in attentions for variable in attention.weights]

    axes = fan_in.centralized_axes(kernels(HEADS_LAST, HEADS_LAST))
    assert axes == [(0,), (0,), (0,), (0, 1)] * 2
    other = [(8, 4, 4), (8, 4, 4), (8, 4, 4), (4, 4, 8)]
    with pytest.warns(UserWarning, match="attention/query/kernel"):
        assert fan_in.centralized_axes(kernels(HEADS_LAST, other)) == [()] * 8


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
        r"\S*head/kernel \(3, 3, 2, 2\)\. Before the first update, call tag_fan_in\(model\) or"
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
    "model", [lambda: keras.Sequential([layers.Dense(2)]), lambda: keras.Model()]
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
