"""Whether a batch's number is its parts' mean, their sum, or neither: measured, not guessed.

The first samples of the first batch are run forward whole, in two halves from the same state, and
the second half again from the state that the first one left. What of these agrees says how
micro-batches make the number of the batch.
"""

from typing import Any, NamedTuple

import numpy as np

from tensorflow_ranger.training.layer_state import CARRIED, LAST, MEAN, SUM, UNKNOWN

SAMPLES = 8  # in a half, at most: a statistic of a few samples differs most from a mean

_CLOSER = 4.0  # times, where random draws hide what is equal


class Look(NamedTuple):
    """What one forward pass made, as arrays."""

    state: list[Any]  #: Values of the variables that layers assigned.
    answers: list[Any]  #: Scalars: the losses that are one number.
    metrics: list[Any]  #: Values of the metrics' variables.
    values: list[Any]  #: What losses make of each sample, where samples may meet in them.


class Looks(NamedTuple):
    """The passes that are compared, and what they began with."""

    begun: Look
    whole: Look
    first: Look
    second: Look
    continued: Look  #: The second half, from the state and the metrics that the first one left.
    among_invented: Look  #: Metrics and values: the first half before samples that no data has.
    invented: Look  #: Metrics: these samples, from the metrics that the first half left.

    @property
    def real(self):
        """The passes over samples of the data, `begun` first."""
        return self[:5]


def kind_of_number(whole, first, second, fraction, tolerance, is_noisy):
    """Return `MEAN`, `SUM` or `UNKNOWN` for a scalar, and whether that is certain.

    Args:
        whole: Its value for all samples.
        first: That for the first part.
        second: That for the rest.
        fraction: Fraction of the samples in the first part.
        tolerance: Relative difference that rounding explains.
        is_noisy: Whether random numbers or batch statistics make the passes differ.

    Returns:
        Tuple ``(kind, is_certain)``.
    """
    mean = fraction * first + (1 - fraction) * second
    errors = {MEAN: abs(whole - mean), SUM: abs(whole - first - second)}
    scale = max(abs(whole), abs(first), abs(second))
    return _closest(errors, scale, tolerance, is_noisy)


def samples_meet(whole, first, second, tolerance):
    """Return whether the losses of some samples differ from those of two parts of them.

    Args:
        whole: Array of one loss per sample, or several.
        first: That of the first part.
        second: That of the rest.
        tolerance: Relative difference that rounding explains.
    """
    parts = np.concatenate([first, second])
    scale = max(_largest(whole), _largest(parts))
    return not _largest(whole - parts) <= tolerance * scale


def adds_up(begun, whole, first, continued, fraction):
    """Return whether a metric's variables move by a sum over samples, rather than by a mean.

    Args:
        begun: List of the variables' values before.
        whole: Their values after all samples.
        first: Those after the first part.
        continued: Those after the rest, from what the first part left.
        fraction: Fraction of the samples in the first part.
    """
    as_sum = as_mean = 0.0
    for old, both, one, gone_on in zip(begun, whole, first, continued, strict=True):
        old, both, one, gone_on = (np.asarray(v, "float64") for v in (old, both, one, gone_on))
        mean = old + fraction * (one - old) + (1 - fraction) * (gone_on - one)
        scale = max(_largest(both - old), _largest(gone_on - old)) or 1.0
        as_sum += _largest(both - gone_on) / scale
        as_mean += _largest(both - mean) / scale
    return bool(as_sum <= as_mean)


def is_nearer_to_sum(whole, first, second, fraction):
    """Return whether a scalar that is a mean or a sum is rather a sum, as `kind_of_number`."""
    mean = fraction * first + (1 - fraction) * second
    return bool(abs(whole - first - second) < abs(whole - mean))


def kind_of_state(begun, looks, fraction, tolerance, is_noisy):
    """Return the kind of a variable's state, what of it stays if it is a sum, and more.

    Args:
        begun: Its value before.
        looks: Its values after the four passes of `Looks`: whole, first, second, continued.
        fraction: Fraction of the samples in the first part.
        tolerance: Relative difference that rounding explains.
        is_noisy: Whether random numbers or batch statistics make the passes differ.

    Returns:
        Tuple ``(kind, decay, adds, is_certain)``: adds says whether what is carried on is a sum
        as well.
    """
    if begun.dtype.kind not in "fiub":
        return LAST, 1.0, False, True
    is_float = begun.dtype.kind == "f"
    begun, whole, first, second, continued = (
        np.asarray(value, "float64") for value in (begun, *looks)
    )
    decay = _decay(begun, first, second, continued) if is_float else 1.0
    candidates = {CARRIED: continued, SUM: first + second - decay * begun, LAST: second}
    if is_float:
        mean = fraction * first + (1 - fraction) * second
        candidates = {MEAN: mean} | candidates
    moved = max(_largest(value - begun) for value in (whole, first, second))
    rounding = tolerance * max(_largest(whole), _largest(begun)) / 16
    errors = {kind: _largest(whole - value) for kind, value in candidates.items()}
    scale = moved + rounding / tolerance if moved else 0.0
    kind, is_certain = _closest(errors, scale, tolerance, is_noisy)
    adds = kind == CARRIED and errors[SUM] <= tolerance * moved + rounding
    return kind, decay if kind == SUM else 1.0, adds, is_certain


def _decay(begun, first, second, continued):
    """Return the factor by which the state before counts in that after.

    For state ``decay * s + f(samples)`` the second half ends ``decay`` times as far apart as it
    began.
    """
    began_apart, ended_apart = first - begun, continued - second
    places = np.abs(began_apart) > 1e-3 * _largest(began_apart)
    if not np.any(places):
        return 1.0
    decay = float(np.median(ended_apart[places] / began_apart[places]))
    return round(decay, 12) if abs(decay - 1.0) > 1e-6 else 1.0


def _closest(errors, scale, tolerance, is_noisy):
    """Return the first kind that explains the value, and whether that is certain."""
    if scale == 0:  # zero for all, or nothing moved: that says nothing
        return next(iter(errors)), False
    for kind, error in errors.items():
        if error <= tolerance * scale:
            return kind, True
    if is_noisy:
        (kind, least), (_, next_least) = sorted(errors.items(), key=lambda item: item[1])[:2]
        if _CLOSER * least <= min(next_least, scale):
            return kind, False
    return UNKNOWN, True


def _largest(array):
    return float(np.max(np.abs(array), initial=0.0))
