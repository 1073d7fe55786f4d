"""The norms of the gradients of windows and of their micro-batches."""

import contextlib

from keras import ops

from tensorflow_ranger.backend import arrays
from tensorflow_ranger.optimizers import clipped_norms
from tensorflow_ranger.rules import gradient_norms


class NormGauge:
    """Measures of windows the norm of the gradient, and the mean norm of the micro-batches' ones.

    Both are added up over windows. Nothing is measured outside of `during_training`.

    Args:
        add_state: Function ``(name, shape, dtype) -> keras.Variable``: zeros.
        inner_optimizer: The optimizer that makes the updates.
    """

    def __init__(self, add_state, inner_optimizer):
        self._inner_optimizer = inner_optimizer
        self._micro_batch_norm = None
        self.is_active = False
        self.has_seen = False  #: Whether the optimizer was called while it measured.
        self.window = add_state("window_norms", (), "float32")
        self.sums = add_state("gradient_norms", (gradient_norms.SIZE,), "float32")

    @property
    def variables(self):
        """The variables that `add` and `close` assign."""
        return [self.window, self.sums]

    @property
    def shares(self):
        """The variables of which each replica has a share."""
        return [self.window]

    @contextlib.contextmanager
    def during_training(self):
        """Return a context in which the optimizer measures what it is given."""
        before, self.is_active = self.is_active, True
        try:
            yield
        finally:
            self.is_active = before

    @contextlib.contextmanager
    def during_update(self, gradients, micro_batch_norm):
        """Return a context in which the optimizer is given the gradient of several micro-batches.

        Args:
            gradients: List of the gradients, of which the optimizer itself takes the norm.
            micro_batch_norm: Scalar, float32; mean norm of the micro-batches' gradients.
        """
        self._micro_batch_norm = micro_batch_norm
        try:
            with self.during_training():
                yield
        finally:
            self._micro_batch_norm = None

    def begin(self, is_open):
        """Begin to measure.

        Args:
            is_open: Whether the window has micro-batches that were not measured: its update is
                not counted.
        """
        self.window.assign(float("nan") if is_open else 0.0)
        self.clear()

    def settle(self):
        """Do nothing after a step: the optimizer's variables hold what it has found."""

    def clear(self):
        """Begin to count updates anew. The window goes on."""
        self.sums.assign(ops.zeros(self.sums.shape, self.sums.dtype))

    def add(self, gradients, mass, share, loss_scale, added):
        """Add one micro-batch; the arguments are those of `NoiseGauge.add`."""
        self.has_seen = True
        norm = self._micro_batch_norm
        if norm is None:
            square = arrays.squared_norm([g for g in gradients if g is not None])
            norm = ops.sqrt(square) / ops.cast(loss_scale, "float32")
        mass = ops.cast(mass, "float32")
        counts = ops.logical_and(added, mass > 0)
        self.window.assign_add(ops.where(counts, mass * norm, 0.0))

    def close(self, means, shaped, variables, weight):
        """Add what the window tells, and begin the next one.

        Args:
            means: List of the window's gradients; None where a variable has none.
            shaped: List of what the inner optimizer is given for them.
            variables: List of the variables.
            weight: Scalar; what the sum of the micro-batches' norms is divided by.
        """
        means = [gradient for gradient in means if gradient is not None]
        pairs = [pair for pair in zip(shaped, variables, strict=True) if pair[0] is not None]
        gradients, variables = zip(*pairs, strict=True)
        self.sums.assign(
            gradient_norms.added(
                self.sums.value,
                clipped_norms.norm_of(means),
                self.window.value / ops.cast(weight, "float32"),
                clipped_norms.remaining(self._inner_optimizer, list(gradients), list(variables)),
            )
        )
        self.window.assign(ops.zeros((), "float32"))

    def logs(self):
        """Return the means over the updates by the names they are logged under."""
        return gradient_norms.logs(self.sums.value, clipped_norms.clips(self._inner_optimizer))
