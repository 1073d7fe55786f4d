"""Where the sum of a window's gradients is held."""

import keras
from keras import ops

from tensorflow_ranger.backend import arrays


def accumulator_dtype(dtype, requested=None):
    """Return the dtype in which gradients of `dtype` are summed.

    A sum in bfloat16 stops growing at 256, so narrow gradients are summed in float32.

    Args:
        dtype: Name of the variable's dtype.
        requested: Name of a floating dtype that overrides the choice, or None.

    Returns:
        `requested` if given; else float64 for float64 variables where the backend computes in
        float64, and float32 for all others.
    """
    if requested is not None:
        return requested
    # Without x64, JAX computes in float32 what Keras calls float64.
    return "float64" if dtype == "float64" and arrays.supports_dtype("float64") else "float32"


class Buffer:
    """One array per variable that holds the window's weighted sum of gradients.

    Args:
        variables: List of the variables whose gradients are summed.
        add_variable: Function ``(variable, dtype) -> keras.Variable`` that creates an optimizer
            variable of zeros with the variable's shape.
        dtype: Name of the accumulators' dtype, or None for `accumulator_dtype`'s choice.
    """

    def __init__(self, variables, add_variable, dtype=None):
        self._dtypes = [keras.backend.standardize_dtype(v.dtype) for v in variables]
        self._overwritten = [getattr(v, "overwrite_with_gradient", False) for v in variables]
        self.sums = [
            add_variable(variable, accumulator_dtype(variable_dtype, dtype))
            for variable, variable_dtype in zip(variables, self._dtypes, strict=True)
        ]

    def add(self, gradients, scale, keep):
        """Add ``scale * gradients`` where `keep` holds.

        Args:
            gradients: List with one gradient, or None, per variable.
            scale: Scalar; what the gradients are multiplied by.
            keep: Scalar bool.
        """
        summed = []
        for total, gradient, overwritten in zip(
            self.sums, gradients, self._overwritten, strict=True
        ):
            if gradient is None:
                continue
            if overwritten:
                # Such a "gradient" is the variable's next value (a float8 scale): Keras keeps
                # the largest of a window.
                largest = ops.maximum(total, ops.cast(gradient, total.dtype))
                total.assign(ops.where(keep, largest, total.value))
            else:
                summed.append((total, gradient))
        if summed:
            arrays.add_scaled(*zip(*summed, strict=True), scale, keep)

    def mean(self, divisor):
        """Return ``sum / divisor`` per variable, in the variable's own dtype.

        The sums are used up: call `reset` before adding again.

        Args:
            divisor: Positive scalar.

        Returns:
            List of tensors shaped like the variables.
        """
        plain = [i for i, overwritten in enumerate(self._overwritten) if not overwritten]
        divided = iter(
            arrays.divide([self.sums[i] for i in plain], divisor, [self._dtypes[i] for i in plain])
        )
        return [
            ops.cast(total, dtype) if overwritten else next(divided)
            for total, dtype, overwritten in zip(
                self.sums, self._dtypes, self._overwritten, strict=True
            )
        ]

    def reset(self, where):
        """Set the sums to zero where the scalar bool `where` holds."""
        arrays.zero(self.sums, where)
