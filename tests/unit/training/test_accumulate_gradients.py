"""Micro-batches give the value and the gradients of the whole batch, in less memory."""

import ast
import doctest
import inspect
import re
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.backend import gradients as backend_gradients
from tensorflow_ranger.training.accumulate_gradients import accumulate_gradients

BACKEND = keras.config.backend()
MODES = {
    "tensorflow": ["eager", "function", "unknown_batch", "xla"],
    "jax": ["eager", "jit"],
    "torch": ["eager"],
}[BACKEND]
SAMPLES = 10
SIZES = [1, 3, 5, 7, 10, 64]

only_jax = pytest.mark.skipif(BACKEND != "jax", reason="about JAX")
only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow")
only_torch = pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")
not_jax = pytest.mark.skipif(BACKEND == "jax", reason="JAX gives zeros, not None")


@pytest.fixture
def float64_layers(float64):
    """Make layers that compute in float64."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def variable(value, dtype) -> Any:
    """Return `value` as what the backend's users differentiate with respect to."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.Variable(value, dtype=dtype)
    if BACKEND == "torch":
        import torch

        return torch.tensor(value, dtype=getattr(torch, dtype), requires_grad=True)
    return ops.convert_to_tensor(value, dtype=dtype)


def compiled(function, mode):
    """Return `function` of a pytree of tensors, compiled as `mode` says."""
    if mode == "eager":
        return function
    if mode == "jit":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    if mode == "unknown_batch":

        def call(batch):
            arrays = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]

            @tf.function(
                input_signature=[tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in arrays]
            )
            def flat(*arrays):
                rest = iter(arrays)
                return function(
                    keras.tree.map_structure(lambda x: None if x is None else next(rest), batch)
                )

            return flat(*arrays)

        return call
    return tf.function(function, jit_compile=mode == "xla")


def accumulated(loss_fn, variables, batch, size, mode="eager"):
    """Call `accumulate_gradients` with ``loss_fn(variables, micro_batch)`` on every backend."""

    def call(batch):
        function = loss_fn if BACKEND == "jax" else lambda rows: loss_fn(variables, rows)
        return accumulate_gradients(function, variables, batch, size)

    batch = keras.tree.map_structure(
        lambda x: None if x is None else ops.convert_to_tensor(x), batch
    )
    return compiled(call, mode)(batch)


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def assert_close(actual, expected, tolerance):
    for tensor, value in zip(actual, expected, strict=True):
        assert tuple(tensor.shape) == np.shape(value)
        np.testing.assert_allclose(array(tensor), value, rtol=tolerance, atol=tolerance)


def regression(dtype):
    """Return the weights and the samples, with a mask in which micro-batches differ."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(dtype) for shape in ((4, 3), (3, 1))]
    x, y = rng.normal(size=(SAMPLES, 4)).astype(dtype), rng.normal(size=(SAMPLES, 1)).astype(dtype)
    mask = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 1], dtype)[:, None]
    return weights, (x, y, mask)


def mean(x):
    """Return the mean; `ops.mean` rounds through float32 on some backends."""
    return ops.sum(x) / ops.cast(ops.size(x), x.dtype)


def squared_errors(weights, x, y):
    kernel, readout = weights
    return ((x @ kernel) ** 2 @ readout - y) ** 2


def mean_loss(weights, micro_batch):
    x, y, _ = micro_batch
    return mean(squared_errors(weights, x, y))


def masked_loss(weights, micro_batch):
    x, y, mask = micro_batch
    return ops.sum(mask * squared_errors(weights, x, y)), ops.sum(mask)


def reference(weights, batch, mask):
    """Return the whole batch's weighted mean loss and its gradients, by the chain rule."""
    (kernel, readout), (x, y, _) = weights, batch
    hidden = x @ kernel
    errors = hidden**2 @ readout - y
    slopes = 2 * mask * errors / mask.sum()
    gradients = [x.T @ (slopes @ readout.T * 2 * hidden), (hidden**2).T @ slopes]
    return (mask * errors**2).sum() / mask.sum(), gradients


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_a_mean_loss_is_that_of_the_whole_batch(size, mode, float64):
    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, gradients = accumulated(mean_loss, variables, batch, size, mode)
    expected_value, expected = reference(weights, batch, np.ones((SAMPLES, 1)))
    assert_close([value, *gradients], [expected_value, *expected], 1e-10)
    for tensor in (value, *gradients):
        assert keras.backend.standardize_dtype(tensor.dtype) == "float64"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_a_masked_loss_is_that_of_the_whole_batch(size, mode, float64):
    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, gradients = accumulated(masked_loss, variables, batch, size, mode)
    expected_value, expected = reference(weights, batch, batch[2])
    assert_close([value, *gradients], [expected_value, *expected], 1e-10)


def test_a_mean_of_masked_means_is_another_loss(float64):
    def masked_mean(weights, micro_batch):
        total, mass = masked_loss(weights, micro_batch)
        return total / ops.maximum(mass, 1.0)

    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, _ = accumulated(masked_mean, variables, batch, 3)
    expected, _ = reference(weights, batch, batch[2])
    assert abs(float(array(value)) / expected - 1) > 0.1


def test_the_mass_may_be_a_number(float64):
    def loss_fn(weights, micro_batch):
        x, y, _ = micro_batch
        return ops.sum(squared_errors(weights, x, y)), 2 * x.shape[0]

    weights, batch = regression("float64")
    variables = [variable(weight, "float64") for weight in weights]
    value, gradients = accumulated(loss_fn, variables, batch, 4)
    expected_value, expected = reference(weights, batch, np.ones((SAMPLES, 1)))
    assert_close([value, *gradients], [expected_value / 2, *(g / 2 for g in expected)], 1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_the_mass_is_not_differentiated(mode):
    def loss_fn(weights, micro_batch):
        rows = ops.sum(ops.ones_like(micro_batch))
        return ops.sum(weights[0] * micro_batch), ops.sum(weights[0]) * rows

    value, (gradient,) = accumulated(
        loss_fn, [variable([2.0], "float32")], np.ones((5, 1), "float32"), 2, mode
    )
    assert_close([value, gradient], [1.0, [0.5]], 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_no_mass_gives_zeros(mode):
    def loss_fn(weights, micro_batch):
        x, mask = micro_batch
        return ops.sum(weights[0] * x) + ops.sum(weights[0]), ops.sum(mask)

    batch = (np.ones((5, 1), "float32"), np.zeros(5, "int32"))
    value, gradients = accumulated(loss_fn, [variable([2.0], "float32")], batch, 2, mode)
    assert_close([value, *gradients], [0.0, [0.0]], 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_may_be_nested_and_hold_none(mode):
    def loss_fn(weights, micro_batch):
        (tokens, nothing), rest = micro_batch["inputs"], micro_batch["rest"]
        assert nothing is None
        assert rest["y"].shape[1] == 2
        x = ops.cast(tokens, "float32")
        return ops.mean(ops.sum(rest["y"], axis=1) * x) * weights[0]

    tokens = np.arange(7, dtype="int32")
    y = np.random.default_rng(0).normal(size=(7, 2)).astype("float32")
    batch = {"inputs": (tokens, None), "rest": {"y": y}}
    value, gradients = accumulated(loss_fn, [variable(3.0, "float32")], batch, 2, mode)
    expected = np.mean(y.sum(axis=1) * tokens)
    assert_close([value, *gradients], [3 * expected, expected], 1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_of_narrow_gradients_are_wide(dtype, mode):
    # Each micro-batch has the gradient 1. In bfloat16 their sum stops at 256, in float16 at 2048.
    def loss_fn(weights, micro_batch):
        return ops.sum(weights[0] * micro_batch), 1

    samples = 300 if dtype == "bfloat16" else 2100
    ones = ops.ones((samples, 1), dtype)
    value, (gradient,) = accumulated(loss_fn, [variable([1.0], dtype)], ones, 1, mode)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert keras.backend.standardize_dtype(gradient.dtype) == dtype
    assert_close([value, gradient], [1.0, [1.0]], 0)


def test_dtypes_of_gradients_are_those_of_the_variables():
    def loss_fn(weights, micro_batch):
        wide, narrow = weights
        return ops.mean(ops.cast(narrow, "float32") * wide * micro_batch)

    variables = [variable([2.0], "float32"), variable([3.0], "bfloat16")]
    value, gradients = accumulated(loss_fn, variables, np.ones((5, 1), "float32"), 2)
    dtypes = [keras.backend.standardize_dtype(gradient.dtype) for gradient in gradients]
    assert dtypes == ["float32", "bfloat16"]
    assert_close([value, *gradients], [6.0, [3.0], [2.0]], 0)


def test_numpy_arrays_become_tensors():
    def loss_fn(weights, micro_batch):
        assert ops.is_tensor(micro_batch)
        return ops.mean(weights[0] * micro_batch)

    weights = [variable(2.0, "float32")]
    function = loss_fn if BACKEND == "jax" else lambda rows: loss_fn(weights, rows)
    value, gradients = accumulate_gradients(function, weights, np.ones((5, 1), "float32"), 2)
    assert_close([value, *gradients], [2.0, 1.0], 1e-6)


@not_jax
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 4])
def test_the_gradient_of_an_unused_variable_is_none(size, mode):
    def loss_fn(weights, micro_batch):
        return ops.mean(weights[1] * micro_batch)

    variables = [variable([1.0], "float32") for _ in range(3)]
    _, gradients = accumulated(loss_fn, variables, np.ones((4, 1), "float32"), size, mode)
    assert gradients[0] is None
    assert gradients[2] is None
    assert_close([gradients[1]], [[1.0]], 0)


def model_and_data():
    """Return a Keras model without batch statistics or randomness, and samples."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(SAMPLES, 6, 3)), rng.normal(size=(SAMPLES, 2))
    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            keras.layers.Conv1D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    return model, (x.astype(keras.config.floatx()), y.astype(keras.config.floatx()))


def model_gradients(model, batch, size):
    """Return what a user of the backend gets for a Keras model."""

    def loss(outputs, y):
        return mean((outputs - y) ** 2)

    if BACKEND != "jax":
        variables = model.trainable_variables
        return accumulate_gradients(
            lambda rows: loss(model(rows[0], training=True), rows[1]), variables, batch, size
        )

    import jax

    def loss_fn(trainable, rows):
        outputs, _ = model.stateless_call(
            trainable, [v.value for v in model.non_trainable_variables], rows[0], training=True
        )
        return loss(outputs, rows[1])

    def call(trainable, batch):
        return accumulate_gradients(loss_fn, trainable, batch, size)

    return jax.jit(call)([v.value for v in model.trainable_variables], batch)


@pytest.mark.parametrize("size", [3, 5, 16])
def test_a_keras_model(size, float64_layers):
    model, batch = model_and_data()
    tolerance = 1e-6 if BACKEND == "torch" else 1e-10
    value, gradients = model_gradients(model, batch, size)
    kernel = model.trainable_variables[-2]
    outputs = array(model(batch[0])) - batch[1]
    features = array(keras.Sequential(model.layers[:-1])(batch[0]))
    np.testing.assert_allclose(array(value), np.mean(outputs**2), rtol=tolerance)
    np.testing.assert_allclose(
        array(gradients[-2]), features.T @ outputs / SAMPLES, rtol=tolerance, atol=tolerance
    )
    assert tuple(kernel.shape) == tuple(gradients[-2].shape)
    whole_value, whole = model_gradients(model, batch, SAMPLES)
    assert_close([value, *gradients], [array(g) for g in (whole_value, *whole)], tolerance)


@pytest.mark.parametrize("size", [3, 10])
def test_an_embedding(size):
    """On TensorFlow its gradient is a `tf.IndexedSlices`."""
    tokens = np.random.default_rng(0).integers(0, 6, size=(SAMPLES, 4))
    tokens[0] = 5

    def loss_fn(weights, rows):
        return ops.mean(ops.sum(ops.take(weights[0], rows, axis=0), axis=(1, 2)))

    table = [variable(np.ones((8, 2)), "float32")]
    for mode in MODES:
        value, (gradient,) = accumulated(loss_fn, table, tokens, size, mode)
        counts = np.bincount(tokens.ravel(), minlength=8) / SAMPLES
        assert_close([value, gradient], [8.0, np.stack([counts, counts], axis=1)], 1e-5)


@pytest.mark.parametrize("size", [0, -1, 1.0, 2.5, True, None, "auto"])
def test_a_size_that_is_no_integer_from_1_is_refused(size):
    with pytest.raises(ValueError, match=rf"size must be an integer >= 1: got {size!r}\. It is"):
        accumulated(mean_loss, [variable(1.0, "float32")], np.ones((3, 1)), size)


def test_an_integer_of_numpy_is_a_size():
    weights, batch = regression("float32")
    variables = [variable(weight, "float32") for weight in weights]
    accumulated(mean_loss, variables, batch, np.int64(3))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), r"must hold at least one array: got none\."),
        ({"x": None}, r"must hold at least one array: got none\."),
        ((np.ones((3, 1)), 2.0), r"must hold arrays: got a leaf of type float\."),
        ((np.ones((3, 1)), np.float32(2)), r"must have a leading axis: got a scalar\."),
        ((np.ones((3, 1)), np.ones(4)), r"axes of the same size: got \[3, 4\]\. Give"),
        (np.ones((0, 2)), r"must hold at least one sample: got 0\."),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        accumulate_gradients(mean_loss, [variable(1.0, "float32")], batch, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: None, r"got NoneType\. Reduce the loss"),
        (lambda loss: 2.0, r"got float\."),
        (lambda loss: loss[None], r"got \w+ of shape .*1.*\."),
        (lambda loss: (loss, loss, loss), r"got \(.*\)\."),
        (lambda loss: (loss, None), r"of shape .*, NoneType\)\."),
        (lambda loss: (loss, loss[None]), r"got \(.*\)\."),
        (lambda loss: {"loss": loss}, r"got dict\."),
    ],
    ids=["none", "number", "vector", "triple", "no_mass", "vector_mass", "dict"],
)
def test_a_loss_that_is_no_scalar_is_refused(result, message, mode):
    def loss_fn(weights, micro_batch):
        return result(ops.mean(weights[0] * micro_batch))

    weights = [variable(1.0, "float32")]
    with pytest.raises(TypeError, match=rf"loss_fn must return a scalar tensor.*{message}"):
        accumulated(loss_fn, weights, np.ones((4, 1), "float32"), 2, mode)


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


def test_the_backends_are_twins():
    folder = Path(inspect.getfile(backend_gradients)).parent

    def functions(name):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        return {
            node.name: ast.unparse(node.args)
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        }

    assert functions("tensorflow").keys() == {"accumulate", "leaves"}
    assert functions("jax") == functions("tensorflow")
    assert functions("torch") == functions("tensorflow")


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
