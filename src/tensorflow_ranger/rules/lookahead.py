"""Lookahead: slow weights that follow the optimizer's from a distance."""

import dataclasses
import numbers


@dataclasses.dataclass(frozen=True)
class Lookahead:
    """Every k updates the slow weights go a part of the way to the weights, which return to them.

        phi <- phi + alpha (theta - phi),    theta <- phi

    Updates are counted, never micro-batches. Momentum is kept.

    Args:
        k: Integer >= 1; updates between two of these steps.
        alpha: Float in (0, 1]; the part of the way.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> RangerOptimizer(inner="adam", lookahead=Lookahead(k=5, alpha=0.5))

    References:
        Zhang et al., 2019, Algorithm 1. https://arxiv.org/abs/1907.08610
    """

    k: int = 5
    alpha: float = 0.5

    def __post_init__(self):
        """Check the arguments."""
        is_integer = isinstance(self.k, numbers.Integral) and not isinstance(self.k, bool)
        if not is_integer or self.k < 1:
            raise ValueError(
                f"k must be an integer >= 1: got {self.k!r}. It counts the updates between two "
                "steps of the slow weights."
            )
        if not isinstance(self.alpha, numbers.Real) or not 0.0 < self.alpha <= 1.0:
            raise ValueError(
                f"alpha must be in (0, 1]: got {self.alpha!r}. It is the part of the way that the "
                "slow weights go; for none leave Lookahead out."
            )
