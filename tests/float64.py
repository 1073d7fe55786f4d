"""A context in which Keras computes in float64."""

import contextlib

import keras


@contextlib.contextmanager
def in_float64():
    """Let Keras compute in float64, as far as the backend can."""
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    # Keras keeps the policy that the process's first layer asked for.
    keras.config.set_dtype_policy("float64")
    try:
        with _x64_of_jax() if keras.config.backend() == "jax" else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(floatx)


@contextlib.contextmanager
def _x64_of_jax():
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)
