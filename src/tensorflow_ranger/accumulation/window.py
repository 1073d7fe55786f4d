"""The window: the micro-batches whose gradients make one update."""

import numpy as np
from keras import ops

from tensorflow_ranger.accumulation.buffer import Buffer
from tensorflow_ranger.backend import arrays

#: How the names begin that `Window.state` gives to what each replica has a share of.
SHARED = ("window_sum_", "window_mass", "window_squares", "window_measured")


class Window:
    """Sums the gradients of micro-batches and says when they make an update.

    With mean gradients ``g_k`` over masses ``D_k`` the window's gradient is

        G = (sum_k D_k g_k) / (sum_k D_k).

    A micro-batch that is left out (its gradient is not finite) leaves every variable of the window
    as it was, but for the count of those left out: the window waits for another in its place.

    Args:
        variables: List of the variables that are trained.
        add_accumulator: Function ``(variable, dtype) -> keras.Variable``: zeros like `variable`.
        add_state: Function ``(name, shape, dtype) -> keras.Variable``: zeros.
        dtype: Name of the accumulators' dtype, or None for the default of `accumulator_dtype`.
    """

    def __init__(self, variables, add_accumulator, add_state, dtype=None):
        self._buffer = Buffer(variables, add_accumulator, dtype)
        # A mass is as wide as the widest sum, or dividing by it would round the mean.
        wide = any(total.dtype == "float64" for total in self._buffer.sums)
        self.mass = add_state("window_mass", (), "float64" if wide else "float32")
        self.micro_batches = add_state("window_micro_batches", (), "int")
        self.has_gradient = add_state("window_has_gradient", (len(variables),), "bool")
        self.skipped_micro_batches = add_state("skipped_micro_batches", (), "int")

    @property
    def variables(self):
        """The variables that `add` and `reset` assign."""
        return [*self._buffer.sums, self.mass, self.micro_batches, self.has_gradient]

    @property
    def shares(self):
        """The variables of which each replica has a share: the sums and the mass."""
        return [*self._buffer.sums, self.mass]

    @property
    def state(self):
        """The window's variables by the names they are saved under."""
        sums = {f"window_sum_{i}": total for i, total in enumerate(self._buffer.sums)}
        return sums | {
            "window_mass": self.mass,
            "window_micro_batches": self.micro_batches,
            "window_has_gradient": self.has_gradient,
            "skipped_micro_batches": self.skipped_micro_batches,
        }

    def add(self, gradients, mass, loss_scale=1.0, skip_nonfinite=True, agreed=None):
        """Add one micro-batch.

        Args:
            gradients: List with one gradient, or None, per variable, in their order.
            mass: Scalar >= 0; what the micro-batch's mean divided by. A micro-batch of mass 0
                fills its place in the window and adds nothing, whatever its gradient.
            loss_scale: Number > 0 that the loss was multiplied by.
            skip_nonfinite: Whether to leave out a micro-batch with an infinite or NaN gradient.
            agreed: Function from a scalar bool to whether it holds on every replica, or None for
                one replica.

        Returns:
            Whether it was added; scalar bool.
        """
        present = np.array([gradient is not None for gradient in gradients])
        added = counted = True
        if not isinstance(mass, float):
            mass = ops.cast(mass, self.mass.dtype)
        if skip_nonfinite:
            added = arrays.all_finite([g for g in gradients if g is not None])
            if not isinstance(mass, float):
                added = added & arrays.all_finite([mass]) & (mass >= 0)
            counted = ops.logical_or(added, ops.equal(mass, 0.0))
            if agreed is not None:
                counted = agreed(counted)
                added = ops.logical_and(added, counted)
        self._buffer.add(gradients, mass / loss_scale, added)
        self.mass.assign_add(ops.where(added, ops.cast(mass, self.mass.dtype), 0.0))
        self.has_gradient.assign(
            ops.logical_or(self.has_gradient, ops.logical_and(counted, present))
        )
        count = ops.cast(counted, self.micro_batches.dtype)
        self.micro_batches.assign_add(count)
        self.skipped_micro_batches.assign_add(1 - count)
        return added

    def mean(self, reduction="mean", share=1.0):
        """Return the gradient that the window's micro-batches make, one tensor per variable.

        Args:
            reduction: "mean" divides the sum by the window's mass; "sum" does not divide.
            share: What of the sum and of the mass is held here.
        """
        return self._buffer.mean(self.divisor(reduction, share))

    def divisor(self, reduction="mean", share=1.0):
        """Return what `mean` divides the sum by; the arguments are its own."""
        if reduction == "sum":
            return share
        # Without any mass the sum is zero, and so is the gradient.
        return ops.where(ops.greater(self.mass, 0), self.mass.value, 1)

    def reset(self):
        """Begin an empty window."""
        self._buffer.reset(where=ops.greater(self.micro_batches, 0))
        for variable in (self.mass, self.micro_batches, self.has_gradient):
            variable.assign(ops.zeros(variable.shape, variable.dtype))
