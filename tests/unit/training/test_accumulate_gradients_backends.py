"""What `accumulate_gradients` does on one backend, in that backend's idiom."""

import doctest
import re
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.training.accumulate_gradients import accumulate_gradients
from tests.unit.training.gradients import (
    BACKEND,
    array,
    assert_close,
    masked_loss,
    only_jax,
    only_tensorflow,
    only_torch,
    reference,
    regression,
    variable,
)


@only_tensorflow
@pytest.mark.parametrize(
    ("rows", "message"),
    [((0, 0), "batch must hold at least one sample: got 0"), ((4, 6), "of the same size")],
)
def test_an_unknown_leading_axis_is_checked_as_it_runs(rows, message):
    import tensorflow as tf

    weight = variable(1.0, "float32")

    @tf.function(input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None])])
    def call(x, y):
        def loss_fn(rows):
            return tf.reduce_mean(rows[0]) * tf.reduce_mean(rows[1]) * weight

        return accumulate_gradients(loss_fn, [weight], (x, y), 2)

    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(tf.ones(rows[0]), tf.ones(rows[1]))


@only_tensorflow
def test_one_graph_serves_batches_of_any_size():
    import tensorflow as tf

    weight = variable(2.0, "float32")
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def call(x):
        def loss_fn(rows):
            traces.append(rows.shape.as_list())
            return tf.reduce_mean(rows) * weight

        return accumulate_gradients(loss_fn, [weight], x, 4)

    for samples in (1, 4, 11):
        x = np.random.default_rng(0).normal(size=(samples, 3)).astype("float32")
        value, gradients = call(tf.constant(x))
        assert_close([value, *gradients], [2 * x.mean(), x.mean()], 1e-6)
    assert sorted(set(map(str, traces))) == ["[4, 3]", "[None, 3]"]


@only_tensorflow
def test_a_graph_holds_a_loop_and_not_its_micro_batches():
    import tensorflow as tf

    weight = variable(2.0, "float32")
    traces = []

    def call(x):
        def loss_fn(rows):
            traces.append(len(rows))
            return tf.reduce_mean(rows) * weight

        return accumulate_gradients(loss_fn, [weight], x, 4)

    graph = tf.function(call).get_concrete_function(tf.ones((50, 3))).graph
    assert set(traces) == {4, 2}
    loops = [op for op in graph.get_operations() if op.type in ("While", "StatelessWhile")]
    assert [op.get_attr("parallel_iterations") for op in loops] == [1, 1]


@only_tensorflow
def test_slices_of_an_embedding_touch_their_rows_alone():
    import tensorflow as tf

    table = variable(np.ones((8, 2)), "float32")

    def call(tokens):
        return accumulate_gradients(
            lambda rows: tf.reduce_mean(tf.gather(table, rows)), [table], tokens, 2
        )

    graph = tf.function(call).get_concrete_function(tf.zeros(4, "int32")).graph
    nodes = {node.op for f in graph.as_graph_def().library.function for node in f.node_def}
    assert "TensorScatterAdd" in nodes
    assert "UnsortedSegmentSum" not in nodes


@only_tensorflow
def test_inner_axes_may_be_unknown():
    import tensorflow as tf

    weight = variable(2.0, "float32")
    shapes = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3])])
    def call(x):
        def loss_fn(rows):
            shapes.append(rows.shape.as_list())
            return tf.reduce_mean(rows) * weight

        return accumulate_gradients(loss_fn, [weight], x, 2)

    value, gradients = call(tf.ones((5, 4, 3)))
    assert_close([value, *gradients], [2.0, 1.0], 1e-6)
    assert shapes[0] == [2, None, 3]


@only_tensorflow
def test_what_a_loss_assigns_is_assigned_once_for_each_micro_batch():
    import tensorflow as tf

    weight, seen = variable(2.0, "float32"), variable(0, "int32")

    @tf.function
    def call(x):
        def loss_fn(rows):
            seen.assign_add(len(rows))
            return tf.reduce_mean(rows) * weight

        return accumulate_gradients(loss_fn, [weight], x, 4)

    call(tf.ones((11, 3)))
    assert int(seen) == 11


@only_jax
def test_a_pytree_of_variables_gives_one_of_gradients():
    def loss_fn(weights, rows):
        return ops.mean(rows * weights["a"][0]) + weights["b"]

    variables = {"a": (variable(2.0, "float32"),), "b": variable(3.0, "float32")}
    value, gradients = accumulate_gradients(loss_fn, variables, np.ones((5, 2), "float32"), 2)
    assert keras.tree.map_structure(float, gradients) == {"a": (1.0,), "b": 1.0}
    assert float(value) == 5.0


@only_jax
@pytest.mark.parametrize("rest", [0, 5, 31])
def test_memory_does_not_grow_with_the_batch(rest):
    import jax
    import jax.numpy as jnp

    def loss_fn(weights, rows):
        x, y = rows
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return jnp.mean((x - y) ** 2)

    def temporaries(samples):
        def call(weights, batch):
            return accumulate_gradients(loss_fn, weights, batch, 32)

        weights = [jnp.zeros((64, 64))] * 4
        batch = (jnp.zeros((samples, 64)), jnp.zeros((samples, 64)))
        analysis = jax.jit(call).lower(weights, batch).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    small = temporaries(512)
    assert small > 0
    assert temporaries(16384 + rest) <= 1.02 * small


@only_jax
def test_it_runs_in_a_shard_map():
    import jax
    from jax.sharding import PartitionSpec

    weights, batch = regression("float32")

    def call(weights, batch):
        value, gradients = accumulate_gradients(masked_loss, weights, batch, 3)
        return jax.tree.map(lambda x: jax.lax.pmean(x, "batch"), (value, gradients))

    mesh = jax.sharding.Mesh(jax.devices()[:1], ("batch",))
    specs = (PartitionSpec(), PartitionSpec("batch"))
    sharded = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    value, gradients = jax.jit(sharded)(weights, batch)
    expected_value, expected = reference(weights, batch, batch[2])
    assert_close([value, *gradients], [expected_value, *expected], 1e-4)


@only_jax
def test_typed_random_keys_may_stand_in_the_batch():
    import jax

    def loss_fn(weight, rows):
        x, keys = rows
        return ops.mean(weight * x * jax.vmap(jax.random.uniform)(keys))

    keys = jax.random.split(jax.random.key(0), 5)
    x = ops.ones(5)
    value, _ = accumulate_gradients(loss_fn, 2.0, (x, keys), 2)
    assert_close([value], [array(loss_fn(2.0, (x, keys)))], 1e-6)


@only_torch
def test_gradients_are_added_to_grad_and_stay_those_of_the_call():
    import torch

    weight = variable([2.0], "float32")
    unused = variable([2.0], "float32")
    batch = torch.tensor([[1.0], [2.0], [6.0]])

    def call():
        return accumulate_gradients(lambda rows: (rows * weight).mean(), [weight, unused], batch, 2)

    _, first = call()
    _, second = call()
    assert_close([first[0], second[0], weight.grad], [[3.0], [3.0], [6.0]], 1e-6)
    assert unused.grad is None
    torch.optim.SGD([weight]).zero_grad(set_to_none=False)
    assert_close([first[0], second[0]], [[3.0], [3.0]], 1e-6)


@only_torch
def test_an_optimizer_of_torch_takes_parameters_as_they_come():
    import torch

    model = torch.nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = array(model.weight)
    x = torch.arange(15.0).reshape(5, 3)
    _, (weight, bias) = accumulate_gradients(
        lambda rows: model(rows).mean(), model.parameters(), x, 2
    )
    optimizer.step()
    assert bias is None
    assert_close([model.weight], [before - array(weight)], 1e-6)


@only_torch
def test_sparse_gradients_are_summed_dense():
    import torch

    table = torch.nn.Embedding(4, 2, sparse=True, dtype=torch.bfloat16)
    tokens = torch.tensor([1, 1, 3])
    _, (gradient,) = accumulate_gradients(
        lambda rows: table(rows).sum(dim=1).float().mean(), table.parameters(), tokens, 2
    )
    expected = np.array([[0, 0], [2, 2], [0, 0], [1, 1]]) / 3
    assert_close([gradient], [expected], 2e-2)


@only_torch
@pytest.mark.parametrize("context", ["no_grad", "enable_grad"])
def test_one_graph_lives_at_a_time(context):
    import torch

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor

    weight = variable([2.0], "float32")
    graphs = weakref.WeakSet()
    sizes = []

    def save(tensor):
        saved = Saved(tensor)
        graphs.add(saved)
        return saved

    def loss_fn(rows):
        assert not graphs
        loss, mass = (rows * weight).square().sum(), weight.square().sum() + len(rows)
        sizes.append(len(graphs))
        return loss, mass

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor)
    with getattr(torch, context)(), hooks:
        value, _ = accumulate_gradients(loss_fn, [weight], torch.ones((6, 1)), 2)
    assert not value.requires_grad
    assert len(sizes) == 3
    assert min(sizes) > 0
    assert not graphs


@only_torch
def test_a_micro_batch_whose_loss_is_constant_counts():
    import torch

    weight = variable(2.0, "float32")

    def loss_fn(rows):
        return (weight * rows).mean() if rows.all() else torch.zeros(())

    value, (gradient,) = accumulate_gradients(loss_fn, [weight], torch.tensor([1.0, 1.0, 0.0]), 2)
    assert_close([value, gradient], [4 / 3, 2 / 3], 1e-6)


def example():
    """Return the statements of the docstring's example for the active backend."""
    heading = {"tensorflow": "TensorFlow:", "jax": "JAX:", "torch": "PyTorch:"}[BACKEND]
    section = (accumulate_gradients.__doc__ or "").partition("Example:")[2].partition(heading)[2]
    code = re.match(r"\s*\n((\s*(>>>|\.\.\.) .*\n)+)", section)
    assert code
    return [part.source for part in doctest.DocTestParser().get_examples(code[1])]


def test_the_example_runs():
    x = np.random.default_rng(0).normal(size=(70, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    names: dict = {"accumulate_gradients": accumulate_gradients, "x": x, "y": y}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
        names |= {"tf": tf, "model": model, "optimizer": optimizer}
    elif BACKEND == "jax":
        import jax
        import jax.numpy as jnp

        names |= {"jax": jax, "jnp": jnp, "weights": jnp.zeros((4, 1))}
    else:
        import torch

        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x, y = torch.tensor(x), torch.tensor(y)
        names |= {"torch": torch, "model": model, "optimizer": optimizer, "x": x, "y": y}
    statements = example()
    values = []
    for _ in range(20):
        exec("".join(statements), names)
        values.append(float(array(names["value"])))
        statements = [code for code in statements if not code.startswith(("def", "@"))]
    assert values[-1] < 0.1 * values[0]
