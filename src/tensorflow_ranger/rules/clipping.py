"""Adaptive gradient clipping: a gradient's norm in units of the weight's."""

import dataclasses
from typing import Any

from keras import ops


def unit_norm(tensor, axes):
    """Return the Euclidean norm of every output unit, with its axes kept.

    Args:
        tensor: Floating tensor of any shape.
        axes: Tuple of ints; the axes of a unit's weights. None takes all of them.
    """
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axes, keepdims=True))


@dataclasses.dataclass(frozen=True)
class AdaptiveGradientClipping:
    """Bounds the gradient of every output unit by a share of the unit's weights.

        G_i <- G_i min(1, clipping max(norm(W_i), epsilon) / norm(G_i))

    It looks at the mean over the batch: clipping every micro-batch would be another rule.

    Args:
        clipping: Float > 0; the largest norm of a unit's gradient, in units of its weights' norm.
        epsilon: Float > 0; the least norm of weights that counts, so that zeros can be trained.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> RangerOptimizer(inner="sgd", adaptive_clipping=AdaptiveGradientClipping(0.01))

    References:
        Brock et al., 2021, equation 3. https://arxiv.org/abs/2102.06171
    """

    clipping: float = 0.01
    epsilon: float = 1e-3

    def __post_init__(self):
        """Check the arguments."""
        for name in ("clipping", "epsilon"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(
                    f"{name} must be a number > 0: got {value!r}. For no clipping leave "
                    "AdaptiveGradientClipping out."
                )

    def clipped(self, gradient: Any, weight: Any, axes: tuple[int, ...]) -> Any:
        """Return the gradient, clipped.

        Args:
            gradient: Floating tensor.
            weight: Tensor of the gradient's shape and dtype.
            axes: Tuple of ints, the axes of a unit's weights, or None for all of them.
        """
        return gradient * self.factor(unit_norm(gradient, axes), unit_norm(weight, axes))

    def factor(self, norm: Any, weight_norm: Any) -> Any:
        """Return what each unit's gradient is multiplied by, in (0, 1].

        Args:
            norm: Tensor; the norm of each unit's gradient.
            weight_norm: Tensor of the same shape and dtype; the norm of each unit's weights.
        """
        # max(a, b) as b + relu(a - b): Keras' maximum rounds float64 to float32 on some backends.
        largest = self.clipping * (self.epsilon + ops.relu(weight_norm - self.epsilon))
        return largest / (largest + ops.relu(norm - largest))
