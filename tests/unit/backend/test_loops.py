"""A loop over micro-batches inside a compiled function."""

import keras
import numpy as np
import pytest

BACKEND = keras.config.backend()
if BACKEND == "torch":
    pytest.skip("PyTorch's loop runs in Python", allow_module_level=True)


def add(total, micro_batch):
    return total + keras.ops.sum(micro_batch)


def compiled(samples, size):
    """Return what a compiled function makes of a batch, and the names of what it is made of."""
    batch = np.arange(samples, dtype="float32")
    if BACKEND == "jax":
        import jax

        from tensorflow_ranger.backend.jax.loops import fold

        def run(batch):
            return fold(add, np.float32(0), batch, size)

        names = [equation.primitive.name for equation in jax.make_jaxpr(run)(batch).eqns]
        return float(jax.jit(run)(batch)), names
    import tensorflow as tf

    from tensorflow_ranger.backend.tensorflow.loops import fold

    graph = tf.Graph()
    with graph.as_default():
        fold(add, tf.constant(0.0), tf.constant(batch), size)
    total = tf.function(lambda: fold(add, tf.constant(0.0), tf.constant(batch), size))()
    return float(total), [each.type for each in graph.get_operations()]


def loops_in(names):
    return [name for name in names if "while" in name.lower() or name == "scan"]


@pytest.mark.parametrize("samples", [6, 7, 8])
def test_micro_batches_are_a_loop(samples):
    total, names = compiled(samples, 3)
    assert total == sum(range(samples))
    assert loops_in(names)


def test_one_micro_batch_is_no_loop():
    total, names = compiled(3, 3)
    assert total == 3
    assert not loops_in(names)
