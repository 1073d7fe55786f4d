"""The variables that an optimizer keeps beside each of the model's."""

from typing import Any

from tensorflow_ranger.accumulation.accumulators import accumulator_dtype


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
        layout=getattr(variable, "_layout", None),
        name=f"{path}_{name}".replace("/", "_").replace(":", "_"),
    )
