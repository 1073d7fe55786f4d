"""The noise scale of the windows that an optimizer closes."""

from keras import ops

from tensorflow_ranger.backend import arrays
from tensorflow_ranger.batch_size import noise_scale


class NoiseGauge:
    """Sums the squared norms of a window's gradients, and averages what windows tell.

    Args:
        add_state: Function ``(name, shape, dtype) -> keras.Variable``: zeros.
        memory: Integer >= 1; windows that the averages reach back. May be assigned.
    """

    def __init__(self, add_state, memory=noise_scale.MEMORY):
        self.memory = memory
        self.squares = add_state("window_squares", (), "float32")
        self.measured = add_state("window_measured", (), "float32")
        self.averages = add_state("noise_averages", (noise_scale.SIZE,), "float32")

    @property
    def variables(self):
        """The variables that `add` and `close` assign."""
        return [self.squares, self.measured, self.averages]

    @property
    def shares(self):
        """The variables of which each replica has a share."""
        return [self.squares, self.measured]

    @property
    def state(self):
        """The variables by the names they are saved under."""
        return {
            "window_squares": self.squares,
            "window_measured": self.measured,
            "noise_averages": self.averages,
        }

    def add(self, gradients, mass, share, loss_scale, added):
        """Add one micro-batch.

        Args:
            gradients: List with one gradient, or None, per variable.
            mass: Scalar >= 0.
            share: What of the micro-batch counts here.
            loss_scale: Number > 0 that the loss was multiplied by.
            added: Whether the window took it; scalar bool.
        """
        square = arrays.squared_norm([g for g in gradients if g is not None])
        square = square / ops.cast(loss_scale, "float32") ** 2
        mass = ops.cast(mass, "float32")
        counts = ops.logical_and(added, mass > 0)
        self.squares.assign_add(ops.where(counts, mass * square, 0.0))
        self.measured.assign_add(ops.where(counts, share, 0.0))

    def close(self, means, mass, share, is_sum):
        """Average what the window tells, and begin the next one.

        Args:
            means: List of the window's gradients.
            mass: Scalar; the window's mass.
            share: What of the window is held here.
            is_sum: Whether the gradients are sums that still have to be divided by the mass.
        """
        mass = ops.cast(mass, "float32")
        held = ops.where(mass > 0, mass, 1.0)
        whole = held / share
        square = arrays.squared_norm(means)
        self.averages.assign(
            noise_scale.updated(
                self.averages.value,
                self.squares.value / held,
                square / whole**2 if is_sum else square,
                self.measured.value / share,
                mass / share,
                self.memory,
            )
        )
        self.reset()

    def reset(self):
        """Begin a window."""
        for variable in self.shares:
            variable.assign(ops.zeros((), "float32"))

    def miss_window(self):
        """Take no notice of the window that has begun: its first micro-batches were not seen."""
        self.squares.assign(float("nan"))
