"""The fan-in of weights of layers that Keras does not have, learned from their calls."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger.optimizers import fan_in
from tensorflow_ranger.optimizers.fan_in_by_call import axes_by_call, summed_axes
from tests.marks import first_but


class Own(layers.Layer):
    """A layer of the user's: ``call(x, *weights)``."""

    def __init__(self, call, **weights):
        super().__init__()
        self.of_x, self.shapes = call, weights

    def build(self, input_shape):
        self.own = [self.add_weight(name=name, shape=s) for name, s in self.shapes.items()]

    def call(self, x):
        return self.of_x(x, *(weight.value for weight in self.own))


def powers(x, w):
    return ops.einsum("bik,iko->bo", ops.stack([x, x**2, x**3], axis=-1), w)


def splines(x, w, scale_factor):
    basis = ops.relu(1 - ops.abs(x[..., None] - ops.linspace(-1.0, 1.0, 5)))
    return ops.einsum("bik,iko,io->bo", basis, w, scale_factor)


def normalized(x, v, g):
    return x @ (v / ops.sqrt(ops.sum(v**2, axis=0)) * g)


def sampled(x, mean, rho):
    noise = keras.random.normal(rho.shape, seed=1)
    return x @ (mean + ops.softplus(rho) * noise)


def straight(x, rounded):
    return x + ops.stop_gradient(rounded - x)


def quantized(x, w):
    return ops.relu(x @ straight(w, ops.round(4 * w) / 4))


def nearest(x, book):
    distances = ops.sum((x[:, None] - book) ** 2, axis=-1)
    return ops.take(book, ops.argmin(distances, axis=-1), axis=0)


def prefixed(x, prompt):
    return ops.concatenate([ops.broadcast_to(prompt, (ops.shape(x)[0], 2, 3)), x], axis=1)


def liquid(x, mu, sigma, w):
    return ops.sum(w * ops.sigmoid(sigma * (x[..., None] - mu)), axis=1)


# fmt: off
CASES = {
    "matmul": (lambda x, w: ops.relu(x @ w), (6,), {"w": (6, 4)}, [(0,)]),
    "matmul over time": (lambda x, w: ops.matmul(x, w), (None, 6), {"w": (6, 4)}, [(0,)]),
    "out first": (lambda x, w: ops.tanh(x @ ops.transpose(w)), (6,), {"w": (4, 6)}, [(1,)]),
    "heads first": (lambda x, w: ops.einsum("btd,ndh->btnh", x, w), (5, 6), {"w": (2, 6, 3)},
                    [(1,)]),
    "one unit": (lambda x, w: x @ w, (6,), {"w": (6, 1)}, [(0,)]),
    "convolution": (lambda x, w: ops.conv(x, w, padding="same"), (8, 8, 3), {"w": (3, 3, 3, 4)},
                    [(0, 1, 2)]),
    "transposed convolution": (lambda x, w: ops.conv_transpose(x, w, padding="same"), (8, 8, 3),
                               {"w": (3, 3, 4, 3)}, [(0, 1, 3)]),
    "Kolmogorov-Arnold, powers": (powers, (6,), {"w": (6, 3, 4)}, [(0, 1)]),
    "Kolmogorov-Arnold, splines": (splines, (6,), {"w": (6, 5, 4), "scale_factor": (6, 4)},
                                   [(0, 1), (0,)]),
    "reparameterized, norm and direction": (normalized, (64,), {"v": (64, 4), "g": (4,)},
                                            [None, ()]),
    "reparameterized, mean and spread": (sampled, (6,), {"mean": (6, 4), "rho": (6, 4)},
                                         [(0,), None]),
    "quantized in the call": (quantized, (6,), {"w": (6, 4)}, [(0,)]),
    "codes": (nearest, (3,), {"book": (5, 3)}, [()]),
    "codes, straight-through": (lambda x, book: straight(x, nearest(x, book)), (3,),
                                {"book": (5, 3)}, [None]),
    "prompt": (prefixed, (5, 3), {"prompt": (2, 3)}, [()]),
    "factors": (lambda x, w: x * w, (5, 3), {"w": (5, 3)}, [()]),
    "liquid": (liquid, (6,), {"mu": (6, 4), "sigma": (6, 4), "w": (6, 4)}, [None, None, (0,)]),
    "two products": (lambda x, a, b: (x @ a) @ b, (6,), {"a": (6, 5), "b": (5, 4)}, [None, (0,)]),
    "softmax of the weight": (lambda x, w: x @ ops.softmax(w), (6,), {"w": (6, 4)}, [None]),
    "no part of the output": (lambda x, w: x, (6,), {"w": (6, 4)}, [None]),
    "no such inputs": (lambda x, w: x.nothing, (6,), {"w": (6, 4)}, [None]),
}
# fmt: on


@pytest.mark.parametrize("case", first_but(["matmul", "convolution", "codes", "liquid"], CASES))
def test_the_fan_in_of_a_layer_of_ones_own(case):
    call, shape, weights, axes = CASES[case]
    layer = Own(call, **weights)
    layer.build((None, *shape))
    assert [axes_by_call(layer, v) if len(v.shape) > 1 else () for v in layer.own] == axes


class Closed(layers.Layer):
    """A closed-form continuous-time cell."""

    state_size = 4

    def build(self, input_shape):
        self.first = self.add_weight(name="ff1_weight", shape=(input_shape[-1] + 4, 4))
        self.second = self.add_weight(name="ff2_weight", shape=(input_shape[-1] + 4, 4))
        self.gate = layers.Dense(4)
        self.gate.build((None, input_shape[-1] + 4))

    def call(self, inputs, states):
        x = ops.concatenate([inputs, states[0]], axis=-1)
        gate = ops.sigmoid(self.gate(x))
        new = ops.tanh(x @ self.first) * gate + ops.tanh(x @ self.second) * (1 - gate)
        return new, [new]


class Pair(layers.Layer):
    """A layer of two inputs, one of which sets seeds and state going."""

    def build(self, left_shape, right_shape):
        self.left = self.add_weight(name="to_left", shape=(left_shape[-1], 4))
        self.right = self.add_weight(name="to_right", shape=(4, right_shape[-1]))
        self.calls = self.add_weight(name="calls", shape=(), trainable=False)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, left, right):
        self.calls.assign(self.calls + 1)
        noise = keras.random.uniform(ops.shape(right), seed=self.seeds)
        return left @ self.left + (right + 0.0 * noise) @ ops.transpose(self.right)


def test_a_cell_and_a_layer_of_two_inputs_in_a_model():
    x = keras.Input((7, 3))
    h = layers.RNN(Closed())(x)
    model = keras.Model(x, Pair()(h, h))
    before = [ops.convert_to_numpy(v) for v in model.variables]
    fan_in.tag_fan_in(model)
    axes = {v.name: v.fan_in_axes for v in model.trainable_variables if len(v.shape) > 1}
    assert axes == {
        "ff1_weight": (0,),
        "ff2_weight": (0,),
        "kernel": (0,),
        "to_left": (0,),
        "to_right": (1,),
    }
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


def test_a_tag_and_a_name_come_before_the_call():
    calls = []
    layer = Own(lambda x, w, kernel: calls.append(x) or x @ w @ kernel, w=(3, 4), kernel=(4, 5))
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.own[0].fan_in_axes = (1,)
    calls.clear()
    fan_in.tag_fan_in(model)
    assert not calls
    assert [variable.fan_in_axes for variable in layer.own] == [(1,), (0,)]


@pytest.mark.parametrize("seed", first_but(range(3), range(12)))
def test_units_that_most_samples_leave_inactive(seed):
    layer = Own(lambda x, w: ops.relu(x @ w - 0.4), w=(6, 4))
    layer.build((None, 6))
    layer.own[0].assign(np.random.default_rng(seed).normal(0.0, 0.5, (6, 4)))
    assert axes_by_call(layer, layer.own[0]) == (0,)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_a_call_in_half_precision(policy):
    layer = Own(lambda x, w, v: ops.relu(x @ w) + x @ ops.softmax(v), w=(6, 4), v=(6, 4))
    layer.dtype_policy = policy
    layer.build((None, 6))
    assert [axes_by_call(layer, variable) for variable in layer.own] == [(0,), None]


def test_axes_of_gradients_by_hand():
    w = np.zeros((3, 4))
    w[:, 1] = 1, 2, 3
    one = np.zeros((3, 4))
    one[1, 1] = 5
    other = np.zeros((3, 4))
    other[2, 1] = 5
    assert summed_axes([(w, -2 * w)]) == (0,)
    assert summed_axes([(one, -3 * one), (other, other)]) == ()
    assert summed_axes([(w, w + one)]) is None
    assert summed_axes([(w + w[:, ::-1], w + w[:, ::-1])]) is None
    # Inputs that happen to be zero: what another sample sees counts too.
    assert summed_axes([(one, one), (w, w)]) == (0,)
