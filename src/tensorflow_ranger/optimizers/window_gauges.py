"""What a `RangerOptimizer` measures of its windows, where it is asked to."""

from tensorflow_ranger.batch_size.noise_scale import MEMORY
from tensorflow_ranger.optimizers.noise_gauge import NoiseGauge
from tensorflow_ranger.optimizers.norm_gauge import NormGauge


class WindowGauges:
    """The gauges of an optimizer: none at first.

    Args:
        add_state: Function ``(name, shape, dtype) -> keras.Variable``: zeros.

    Attributes:
        noise: `NoiseGauge`, or None.
        norms: `NormGauge`, or None.
    """

    def __init__(self, add_state):
        self._add_state = add_state
        self.noise: NoiseGauge | None = None
        self.norms: NormGauge | None = None

    def measure_noise(self, is_open, memory=MEMORY):
        """Begin to measure the noise scale; return whether that is new, or `memory` is.

        Args:
            is_open: Whether the window has micro-batches that were not measured.
            memory: Integer >= 1; windows that the averages reach back.
        """
        before = None if self.noise is None else self.noise.memory
        if self.noise is None:
            self.noise = NoiseGauge(self._add_state)
            if is_open:
                self.noise.miss_window()
        self.noise.memory = memory
        return memory != before

    def measure_norms(self, inner_optimizer):
        """Return the gauge of the norms of `inner_optimizer`'s gradients, made where need be."""
        if self.norms is None:
            self.norms = NormGauge(self._add_state, inner_optimizer)
        return self.norms

    @property
    def variables(self):
        """The variables that `add` and `close` assign."""
        return [v for gauge in self._all for v in gauge.variables]

    @property
    def shares(self):
        """The variables of which each replica has a share."""
        return [v for gauge in self._all for v in gauge.shares]

    @property
    def averages(self):
        """The value of the noise scale's averages, or None."""
        return None if self.noise is None else self.noise.averages.value

    def add(self, *micro_batch):
        """Add one micro-batch; the arguments are those of `NoiseGauge.add`."""
        if self.noise is not None:
            self.noise.add(*micro_batch)
        if self.norms is not None and self.norms.is_active:
            self.norms.add(*micro_batch)

    def close_noise(self, means, mass, share, is_sum):
        """Close the noise scale's window; the arguments are those of `NoiseGauge.close`."""
        if self.noise is not None:
            self.noise.close(means, mass, share, is_sum)

    def close_norms(self, means, shaped, variables, window, reduction, share):
        """Close the norms' window, which has a gradient.

        Args:
            means: List of the window's gradients; None where a variable has none.
            shaped: List of what the inner optimizer is given for them.
            variables: List of the variables.
            window: The window that `means` are the mean of.
            reduction: As `window.mean` was given it.
            share: Fraction of the window that this replica holds, in (0, 1].
        """
        if self.norms is not None and self.norms.is_active:
            self.norms.close(means, shaped, variables, window.divisor(reduction, share))

    @property
    def _all(self):
        return [gauge for gauge in (self.noise, self.norms) if gauge is not None]
