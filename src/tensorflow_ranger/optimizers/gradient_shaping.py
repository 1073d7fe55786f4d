"""What is done to a batch's mean gradients before an optimizer sees them."""

from keras import ops

from tensorflow_ranger.optimizers.fan_in import centralized_axes
from tensorflow_ranger.rules.centralization import centralize


class GradientShaping:
    """Clips each output unit's gradient, then takes off its mean over the fan-in.

    Args:
        clipping: An `AdaptiveGradientClipping`, or None.
        centralize: Whether to centralize.
    """

    def __init__(self, clipping, centralize):
        self._clipping = clipping
        self._centralize = centralize
        self._axes = {}

    def fan_in(self, variables):
        """Return the axes of each variable's fan-in; () where there is none, or it is in doubt."""
        new = [variable for variable in variables if id(variable) not in self._axes]
        for variable, axes in zip(new, centralized_axes(new), strict=True):
            self._axes[id(variable)] = axes
        return [self._axes[id(variable)] for variable in variables]

    def shaped(self, gradients, variables):
        """Return the gradients, clipped and centralized; a None stays None."""
        if self._clipping is None and not self._centralize:
            return gradients
        fan_in = self.fan_in(variables)
        return [
            None if gradient is None else self._shaped(ops.convert_to_tensor(gradient), *pair)
            for gradient, *pair in zip(gradients, variables, fan_in, strict=True)
        ]

    def _shaped(self, gradient, variable, axes):
        if self._clipping is not None:
            weight = ops.cast(variable.value, gradient.dtype)
            gradient = self._clipping.clipped(gradient, weight, unit_axes(variable, axes))
        return centralize(gradient, axes) if self._centralize else gradient


def unit_axes(variable, fan_in):
    """Return the axes of one unit's weights: the fan-in, a row of a table, or None for all."""
    if fan_in:
        return fan_in
    return (-1,) if len(variable.shape) > 1 else None
