"""Small models and data that tests train, and what they compare."""

import keras
import numpy as np

import tensorflow_ranger as ranger

SAMPLES = 48
#: Arguments of `compile`: the ways in which the backend runs a training step.
MODES: dict[str, dict[str, bool]] = {
    "torch": {"eager": {"jit_compile": False}},
    "jax": {"compiled": {"jit_compile": True}, "eager": {"run_eagerly": True}},
    "tensorflow": {
        "graph": {"jit_compile": False},
        "XLA": {"jit_compile": True},
        "eager": {"run_eagerly": True, "jit_compile": False},
    },
}[keras.config.backend()]


def data(samples=SAMPLES, seed=0):
    """Return random inputs of shape (samples, 6) and targets of shape (samples, 2)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 6)).astype("float32")
    return x, np.tanh(x[:, :2] - x[:, 2:4]).astype("float32")


def network(optimizer, loss: object = "mse", **compile_settings):
    """Return a compiled network with one hidden layer; every call gives the same weights."""
    keras.utils.set_random_seed(1)
    # XLA on TensorFlow takes seconds to compile; tests that are about it ask for it.
    compile_settings = {"jit_compile": keras.config.backend() == "jax", **compile_settings}
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(2),
        ]
    )
    model.compile(optimizer=optimizer, loss=loss, **compile_settings)
    return model


def fit(model, x, y, batch_size, epochs=1, **settings):
    """Call `fit` in the order of the samples, without output; return its `History`."""
    settings = {"shuffle": False, "verbose": 0, **settings}
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, **settings)


def temporaries(model, x, y, size):
    """Return the bytes that XLA allocates on JAX for a batch, beside arguments and results."""
    step, state = step_of(model, x, y, size)
    return step.temporaries(state, (x, y, None), size)


def beside_the_state(model, x, y, size):
    """Return the bytes that a batch needs on JAX beside model, optimizer and samples."""
    step, state = step_of(model, x, y, size)
    own = sum(leaf.nbytes for group in state for leaf in group)
    return step.memory(state, (x, y, None), size) - own - x.nbytes - y.nbytes


def step_of(model, x, y, size):
    """Return the step of a model that `microbatch` trains, and the model's state, on JAX."""
    model._symbolic_build(data_batch=(x[:size], y[:size]))
    model.make_train_function()
    _, step = model.make_train_function.__self__._step_for((x, y, None))
    return step, model._get_jax_state(True, True, True, True)


def assert_same_weights(model, other, tolerance=1e-6):
    """Fail unless both models have the same weights."""
    for actual, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_variables(model, other, tolerance):
    """Check that two models and their optimizers have the same variables."""
    pairs = [
        *zip(model.variables, other.variables, strict=True),
        *zip(model.optimizer.variables, other.optimizer.variables, strict=True),
    ]
    for variable, expected in pairs:
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable),
            keras.ops.convert_to_numpy(expected),
            rtol=tolerance,
            atol=tolerance,
            err_msg=variable.path,
        )


def assert_trains_as_plain(make, x, y, sizes=(4, 5), tolerance=1e-6, batch_size=12, **settings):
    """Fail unless `fit` in micro-batches gives plain Keras' weights, state and History.

    Args:
        make: Function that returns a compiled model, each time with the same weights.
        x: Inputs.
        y: Targets.
        sizes: Samples per micro-batch, one run each.
        tolerance: Largest difference of a variable, relative to how far plain Keras moved it.
        batch_size: Samples per batch.
        **settings: Arguments of `fit`.
    """
    plain = make()
    before = [np.array(v) for v in plain.variables]
    history = fit(plain, x, y, batch_size, **settings).history
    for size in sizes:
        model = ranger.microbatch(make(), size)
        actual = fit(model, x, y, batch_size, **settings).history
        for old, value, expected in zip(before, model.variables, plain.variables, strict=True):
            moved = np.max(np.abs(np.array(expected, "float64") - old), initial=0.0)
            np.testing.assert_allclose(
                value, expected, rtol=0, atol=tolerance * max(moved, 1e-3), err_msg=expected.path
            )
        assert actual.keys() == history.keys()
        for name, values in history.items():
            np.testing.assert_allclose(actual[name], values, rtol=10 * tolerance, err_msg=name)
