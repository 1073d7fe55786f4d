"""Contract: graphs and layers of Keras are run by whom `keras_internals` asks."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger.backend import keras_internals


def model():
    inputs = keras.Input((3,))
    x = layers.Dense(3, name="one")(inputs)
    return keras.Model(inputs, layers.Dropout(0.5, name="two")(x + 1.0))


class Recorder:
    """Answers as Keras would, and records what it was asked for."""

    def __init__(self):
        self.graphs, self.layers = [], []

    def run_graph(self, graph, inputs, operation_fn, run):
        self.graphs.append(graph)
        return run()

    def call_layer(self, layer, args, kwargs, call):
        self.layers.append(layer.name)
        return call(*args, **kwargs)


def test_graph_of():
    functional = model()
    sequential = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert keras_internals.graph_of(functional) is functional
    graph = keras_internals.graph_of(sequential)
    assert graph is not None
    assert graph.outputs[0].shape == (None, 2)
    assert keras_internals.graph_of(keras.Model()) is None


def test_nodes_of():
    nodes = keras_internals.nodes_of(model())
    assert [node.operation.name for node in nodes][::2] == ["one", "two"]
    values = {id(nodes[0].input_tensors[0]): "x"}
    assert nodes[0].arguments.fill_in(values) == (("x",), {})
    assert nodes[1].input_tensors[0] is nodes[0].outputs[0]


def test_made_under_remat_scope():
    with keras.RematScope(mode="full"):
        made = layers.Dense(2)
    assert keras_internals.made_under_remat_scope(made)
    assert not keras_internals.made_under_remat_scope(layers.Dense(2))


def test_calling_by():
    network, recorder, x = model(), Recorder(), ops.ones((2, 3))
    with keras_internals.calling_by(recorder):
        network(x)
        with keras_internals.calling_by(None):
            network(x)
    network(x)
    assert recorder.graphs == [network]
    assert recorder.layers[:2] == [network.name, "one"]
    assert recorder.layers.count("two") == 1


def test_call_state():
    states = []

    class Asking(layers.Layer):
        def call(self, x, training=None):
            states.append((training, keras_internals.call_state()))
            return x

    inner = layers.Dropout(0.9)
    keras.Sequential([Asking(dtype="mixed_bfloat16")])(np.ones((1, 2), "float32"), training=True)
    training, state = states[-1]  # the first call builds the model
    assert training
    with keras_internals.in_call_state(state):
        assert not np.all(ops.convert_to_numpy(inner(ops.ones((9, 9)))))  # it inherits training
        assert keras_internals.call_state() == state
    with keras_internals.in_call_state({}):
        assert np.all(ops.convert_to_numpy(inner(ops.ones((9, 9)))))


def test_in_call_state():
    variable = keras.Variable(np.ones(2, "float32"))
    dtypes = []

    class Reading(layers.Layer):
        def call(self, x):
            state = keras_internals.call_state()
            with keras_internals.in_call_state({}):
                dtypes.append(keras.backend.standardize_dtype(variable.value.dtype))
            with keras_internals.in_call_state(state):
                dtypes.append(keras.backend.standardize_dtype(variable.value.dtype))
            return x

    Reading(dtype="mixed_bfloat16")(np.ones((1, 2), "float32"))
    assert dtypes == ["float32", "bfloat16"]


def test_hand_on_losses():
    class Adding(layers.Layer):
        def call(self, x):
            self.add_loss(ops.sum(x))
            return x

    layer, other = Adding(), Adding()
    with keras.StatelessScope(collect_losses=True) as scope:
        layer(ops.ones((1, 2)))
        loss = ops.ones(())
        ids = [id(each) for each in scope.losses]
        keras_internals.hand_on_losses([layer, other], ids, [loss])
        scope.losses[:] = [loss]
        assert keras_internals.own_losses(layer) == [loss]
        assert keras_internals.own_losses(other) == []


@pytest.mark.parametrize("name", ["_run_through_graph", "__call__"])
def test_after_the_last_scope_keras_is_as_it_was(name):
    owner = keras.Function if name == "_run_through_graph" else keras.Layer
    before = vars(owner)[name]
    with keras_internals.calling_by(Recorder()), keras_internals.calling_by(None):
        assert vars(owner)[name] is not before
    assert vars(owner)[name] is before
