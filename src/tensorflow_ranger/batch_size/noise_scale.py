"""The gradient noise scale: how large a batch a problem can use.

With gradients g_k over b_k samples (k = 1..N, B = sum b_k) of a window whose mean is G,

    Q    = sum_k (b_k / B) |g_k|^2                   E Q     = |g|^2 + N tr(S) / B
    |G|^2                                            E |G|^2 = |g|^2 + tr(S) / B

where g is the true gradient and S the covariance of a sample's gradient. So

    tr(S) ~ B (Q - |G|^2) / (N - 1),                 |g|^2 ~ |G|^2 - tr(S) / B

are without bias whatever the sizes. For N equal sizes they are equations A.2 and A.3 of McCandlish
et al. The scale is the ratio of their averages: the mean of ratios would be biased.

References:
    McCandlish et al., 2018, An Empirical Model of Large-Batch Training, appendix A.
    https://arxiv.org/abs/1812.06162
    Fieller, 1954, Some Problems in Interval Estimation.
"""

import dataclasses
import math

import numpy as np
from keras import ops

MEMORY = 200  # windows that an average reaches back
_FIELDS = (
    "unit",  # |g|^2 of the first window, that the others are measured in: squares must fit float32
    "windows",
    "shares",  # sum of the squared weights of the windows in the averages
    "trace",
    "square",
    "trace_variance",
    "square_variance",
    "covariance",
    "samples",
    "micro_batches",
)
SIZE = len(_FIELDS)


def updated(state, squares, window_square, micro_batches, samples, memory=MEMORY):
    """Return the averages after one more window.

    A window that tells nothing leaves them as they are: one of a single micro-batch, one without
    any gradient, one that holds an infinity or a NaN. The first `memory` windows weigh alike;
    later ones push them out exponentially.

    Args:
        state: Tensor of shape ``(SIZE,)``, float32. Zeros before the first window.
        squares: Scalar; Q.
        window_square: Scalar; ``|G|^2``.
        micro_batches: Scalar; N.
        samples: Scalar; B.
        memory: Number >= 1.

    Returns:
        Tensor of shape ``(SIZE,)``.
    """
    dtype = state.dtype
    squares, window_square, micro_batches, samples, memory = (
        ops.cast(value, dtype) for value in (squares, window_square, micro_batches, samples, memory)
    )
    tells = (micro_batches > 1) & (samples > 0) & (squares > 0)
    tells = tells & ops.isfinite(squares) & ops.isfinite(window_square)
    unit, windows, shares, trace, square, trace_var, square_var, covariance, seen, cut = (
        ops.unstack(state, SIZE)
    )
    unit = ops.where(unit > 0, unit, ops.where(tells, squares, 1.0))
    others = ops.where(micro_batches > 1, micro_batches - 1, 1.0)
    new_trace = samples * ((squares - window_square) / unit) / others
    new_square = window_square / unit - new_trace / ops.where(samples > 0, samples, 1.0)
    share = 1 / (1 + ops.minimum(windows, memory - 1))
    stay = 1 - share
    trace_step, square_step = new_trace - trace, new_square - square
    after = ops.stack(
        [
            unit,
            windows + 1,
            stay * stay * shares + share * share,
            trace + share * trace_step,
            square + share * square_step,
            stay * (trace_var + share * trace_step * trace_step),
            stay * (square_var + share * square_step * square_step),
            stay * (covariance + share * trace_step * square_step),
            seen + share * (samples - seen),
            cut + share * (micro_batches - cut),
        ]
    )
    return ops.where(tells, after, state)


def micro_batches_for(state, maximum):
    """Return how many micro-batches make a batch of the noise scale, in [1, `maximum`].

    Args:
        state: Tensor of shape ``(SIZE,)`` after a window or more.
        maximum: Integer >= 1.

    Returns:
        Scalar tensor of the dtype of `state`, a whole number.
    """
    fields = dict(zip(_FIELDS, ops.unstack(state, SIZE), strict=True))
    # scale / (samples / micro_batches), without a division by a gradient of no length.
    wanted = fields["trace"] * fields["micro_batches"]
    one = fields["square"] * fields["samples"]
    most = ops.cast(maximum, state.dtype)
    too_many = wanted >= most * one
    count = ops.round(wanted / ops.where(too_many, 1.0, one))
    return ops.where(too_many, ops.where(wanted > 0, most, 1.0), ops.clip(count, 1.0, most))


@dataclasses.dataclass(frozen=True)
class NoiseEstimate:
    """What is known of the noise scale.

    Attributes:
        scale: Float; the noise scale in samples, which is the batch of which half an update's
            gain is lost to noise. Infinity where no gradient is seen behind the noise.
        low: Float; lower end of its 95 % range.
        high: Float; upper end, infinity where the windows seen don't bound it.
        effective_batch: Float; mean samples of the windows.
        windows: Integer; windows seen.
    """

    scale: float
    low: float
    high: float
    effective_batch: float
    windows: int

    @classmethod
    def of(cls, state) -> "NoiseEstimate | None":
        """Return the estimate that the averages make, or None before the first window.

        The range is Fieller's, of the ratio of two correlated means.

        Args:
            state: Array of shape ``(SIZE,)``, as `updated` returns it.
        """
        fields = dict(zip(_FIELDS, np.asarray(state, "float64").tolist(), strict=True))
        windows = int(fields["windows"])
        if windows == 0:
            return None
        low, high = _range(fields) if windows > 1 else (0.0, math.inf)
        scale = _ratio(max(fields["trace"], 0.0), fields["square"])
        return cls(scale, low, high, fields["samples"], windows)

    def times(self, samples: float) -> "NoiseEstimate":
        """Return the estimate in another unit, of which one of this has `samples`."""
        values = {
            name: getattr(self, name) * samples
            for name in ("scale", "low", "high", "effective_batch")
        }
        return dataclasses.replace(self, **values)

    def in_windows_of(self, batches: float) -> "NoiseEstimate":
        """Return the estimate for an effective batch of so many of those that it was made of."""
        return dataclasses.replace(self, effective_batch=self.effective_batch * batches)

    def updates_with(self, batch: float) -> float:
        """Return how many times the updates a batch of `batch` samples takes, to the same loss."""
        return _cost(self.scale, batch) / _cost(self.scale, self.effective_batch)

    def samples_with(self, batch: float) -> float:
        """Return how many times the samples a batch of `batch` samples takes, to the same loss."""
        return self.updates_with(batch) * batch / self.effective_batch


def _range(fields):
    """Return Fieller's 95 % range of the ratio of the averages, cut at 0."""
    quantile = 1.96**2 * fields["shares"] / (1 - fields["shares"])  # with the unbiased variance
    trace, square = fields["trace"], fields["square"]
    a = square**2 - quantile * fields["square_variance"]
    b = trace * square - quantile * fields["covariance"]
    c = trace**2 - quantile * fields["trace_variance"]
    # The range holds the r with a r^2 - 2 b r + c <= 0.
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and square > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    if c > 0 and trace > 0:
        # Below the gradient's noise there is no upper end: the positive root is the lower one.
        return c / (b + root) if b + root > 0 else 0.0, math.inf
    return 0.0, math.inf


def _ratio(value, other):
    if value == 0:
        return 0.0
    return value / other if other > 0 else math.inf


def _cost(scale, batch):
    # Updates to a given loss: equation 2.11, up to a factor.
    return 1 + scale / batch if math.isfinite(scale) else 1 / batch
