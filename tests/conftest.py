"""Fixtures shared by the suite."""

import keras
import pytest


@pytest.fixture
def float64():
    """Compute in float64, as far as the backend can."""
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    yield "float64"
    if keras.config.backend() == "jax":
        jax.config.update("jax_enable_x64", False)
    keras.config.set_floatx(floatx)


@pytest.fixture(autouse=True)
def seed():
    """Begin every test with the same seed and no names taken."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
