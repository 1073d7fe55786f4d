"""The window, slow and obvious, in float64: a list of micro-batches around momentum SGD."""

import copy

import numpy as np


class WindowedMomentum:
    """Collects micro-batches, and updates with their mean once there are enough.

    Args:
        weights: List of arrays.
        accumulation_steps: Micro-batches per window.
        learning_rate: Float.
        momentum: Float.
        reduction: "mean" or "sum".
    """

    def __init__(
        self, weights, accumulation_steps, learning_rate=0.125, momentum=0.5, reduction="mean"
    ):
        self.weights = [np.array(weight, "float64") for weight in weights]
        self.velocities = [np.zeros_like(weight) for weight in self.weights]
        self.accumulation_steps = accumulation_steps
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.reduction = reduction
        self.window = []
        self.updates = 0
        self.skipped = 0

    def apply(self, gradients, mass=1.0):
        """Add one micro-batch."""
        if mass == 0:
            gradients = [np.zeros_like(gradient) for gradient in gradients]
        if not all(np.isfinite(gradient).all() for gradient in gradients):
            self.skipped += 1
        else:
            self.window.append((mass, gradients))
        if len(self.window) >= self.accumulation_steps:
            self.flush()

    def flush(self):
        """Update with what the window holds, if anything."""
        if not self.window:
            return
        total = sum(mass for mass, _ in self.window)
        divisor = total if self.reduction == "mean" and total else 1.0
        for i, (weight, velocity) in enumerate(zip(self.weights, self.velocities, strict=True)):
            gradient = sum(mass * gradients[i] for mass, gradients in self.window) / divisor
            velocity[...] = self.momentum * velocity - self.learning_rate * gradient
            weight += velocity
        self.window = []
        self.updates += 1

    def state(self):
        """Return all that a save must keep."""
        return copy.deepcopy(vars(self))

    def restore(self, state):
        """Go back to an earlier `state`."""
        vars(self).update(copy.deepcopy(state))
