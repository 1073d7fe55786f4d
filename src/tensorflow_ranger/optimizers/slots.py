"""The variables that an optimizer keeps beside each of the model's."""

from typing import Any

from keras import ops

from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import arrays, keras_internals


def add_slot(optimizer, variable, name, dtype=None, initializer: Any = "zeros"):
    """Return a new variable of `optimizer`, of the shape and the layout of `variable`.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        variable: The model's variable.
        name: String; what the new one holds.
        dtype: Name of a dtype, or None for `accumulator_dtype`'s choice.
        initializer: Keras initializer.
    """
    path = getattr(variable, "path", variable.name)
    return optimizer.add_variable(
        shape=variable.shape,
        dtype=dtype or accumulator_dtype(variable.dtype),
        initializer=initializer,
        layout=keras_internals.layout_of(variable),
        name=f"{path}_{name}".replace("/", "_").replace(":", "_"),
    )


def add_accumulator(optimizer, variable, dtype=None):
    """Return a new variable of `optimizer` for the sum of a window's gradients of `variable`.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        variable: The model's variable.
        dtype: Name of a dtype, or None for `accumulator_dtype`'s choice.

    Raises:
        ValueError: The backend has switched `dtype` off.
    """
    if not arrays.supports_dtype(dtype):
        raise ValueError(
            f"accumulator_dtype={dtype!r} is switched off on JAX. Switch it on first: "
            'jax.config.update("jax_enable_x64", True).'
        )
    return add_slot(optimizer, variable, "window_sum", dtype)


def array_of(variable):
    """Return the value of an optimizer's variable as a NumPy array.

    Raises:
        RuntimeError: `fit` has taken it on JAX.
    """
    if not arrays.has_value(variable):
        raise RuntimeError(
            "The optimizer's state is inside fit now, and this reference has none of it. "
            "In a callback on JAX, go through self.model.optimizer, which fetches it."
        )
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def whole_number(variable):
    """Return the value of an optimizer's scalar variable as an int.

    Raises:
        RuntimeError: `fit` has taken it on JAX.
    """
    return int(array_of(variable))
