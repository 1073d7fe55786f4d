"""A schedule of the number of micro-batches in a window."""

from typing import Any

import keras
from keras import ops

from tensorflow_ranger.checks import arguments
from tensorflow_ranger.checks.calls import made_as
from tensorflow_ranger.checks.wrapped_optimizers import chain


@keras.saving.register_keras_serializable(package="tensorflow_ranger")
class AccumulationSchedule(keras.callbacks.Callback):
    """Micro-batches per window by the number of updates made, in steps.

    A batch that grows while the learning rate stays does what a falling learning rate does, with
    fewer updates. Use it as `accumulation_steps` of a `RangerOptimizer`, or as a callback of `fit`
    with one.

    Args:
        steps: Dict from updates to micro-batches per window from then on: ``{0: 1, 1000: 4}``.

    Raises:
        TypeError: `steps` is no dict; the model of `fit` has no `RangerOptimizer`.
        ValueError: `steps` does not begin at 0, or holds something else than integers.

    Example:
        >>> schedule = AccumulationSchedule({0: 1, 1000: 4, 5000: 16})
        >>> optimizer = RangerOptimizer(1e-3, accumulation_steps=schedule)

    References:
        Smith et al., 2018, Don't Decay the Learning Rate, Increase the Batch Size.
        https://arxiv.org/abs/1711.00489
    """

    def __init__(self, steps: dict[int, int]):
        super().__init__()
        if not isinstance(steps, dict):
            raise TypeError(
                f"steps must be a dict from updates to micro-batches: got {steps!r}. "
                "Use {0: 1, 1000: 4}."
            )
        # JSON turns the keys into text.
        steps = {
            int(key) if isinstance(key, str) and key.isdecimal() else key: value
            for key, value in steps.items()
        }
        for updates, count in steps.items():
            arguments.count("An update of steps", updates, "Count from 0.", least=0)
            arguments.count(f"steps[{updates}]", count, "Use 1 to update after every micro-batch.")
        if 0 not in steps:
            raise ValueError(
                f"steps must begin at update 0: got {sorted(steps)}. Add what comes "
                "first, such as 0: 1."
            )
        self.steps = dict(sorted(steps.items()))

    def __call__(self, updates: Any) -> Any:
        """Return the micro-batches of the window that follows `updates` updates, a scalar tensor.

        Args:
            updates: Scalar integer tensor.
        """
        starts, counts = list(self.steps), list(self.steps.values())
        updates = ops.cast(updates, "int32")
        steps = ops.full((), counts[0], "int32")
        for start, count in zip(starts[1:], counts[1:], strict=True):
            steps = ops.where(updates >= start, count, steps)
        return steps

    @made_as("AccumulationSchedule({0: 1, 1000: 4})")
    def set_model(self, model: keras.Model) -> None:
        """Give the schedule to the model's optimizer."""
        super().set_model(model)
        followers = (each for each in chain(model.optimizer) if hasattr(each, "follow"))
        optimizer = next(followers, None)
        if optimizer is None:
            raise TypeError(
                "AccumulationSchedule sets accumulation_steps of a RangerOptimizer: got "
                f"{type(model.optimizer).__name__}. Compile the model with one."
            )
        if optimizer.follow(self):
            model.train_function = None  # a compiled one knows no schedule

    def get_config(self) -> dict:
        """Return the arguments."""
        return {"steps": {str(updates): count for updates, count in self.steps.items()}}

    @classmethod
    def from_config(cls, config: dict) -> "AccumulationSchedule":
        """Return the schedule that `get_config` describes."""
        return cls(**config)
