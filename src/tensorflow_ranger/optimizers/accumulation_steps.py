"""How many micro-batches make a window: a number, a schedule, or what the noise scale advises."""

import keras
from keras import ops

from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.distribution.merging import chain
from tensorflow_ranger.optimizers import arguments

AUTO = "auto"
FIRST = 4  # the window of "auto" until the noise is known
SETTLED = 10  # windows after which "auto" begins to follow
PROBE_EVERY = 8  # updates: one micro-batch alone shows no noise, and two do


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

    def __init__(self, steps):
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

    def __call__(self, updates):
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

    def set_model(self, model):
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

    def get_config(self):
        """Return the arguments."""
        return {"steps": {str(updates): count for updates, count in self.steps.items()}}

    @classmethod
    def from_config(cls, config):
        """Return the schedule that `get_config` describes."""
        return cls(**config)


class AccumulationSteps:
    """The length of a `RangerOptimizer`'s windows.

    Args:
        value: Integer >= 1, "auto", or an `AccumulationSchedule`.
        maximum: Integer >= 1 that "auto" stays below, or None for 64.
        add_state: Function ``(name, shape, dtype) -> keras.Variable``: zeros.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, value, maximum, add_state):
        self._policy = value if _is_policy(value) else None
        if maximum is not None and value != AUTO:
            raise ValueError(
                f"max_accumulation_steps bounds accumulation_steps='auto': got {maximum} and "
                f"accumulation_steps={value!r}. Leave it out."
            )
        self.maximum = arguments.count(
            "max_accumulation_steps",
            64 if maximum is None else maximum,
            "It is the largest number of micro-batches that 'auto' may choose.",
        )
        self.variable = add_state("accumulation_steps", (), "int")
        self.variable.assign(self._first(value))

    @property
    def follows_noise(self):
        """Whether windows grow and shrink with the noise scale."""
        return self._policy == AUTO

    @property
    def is_fixed(self):
        """Whether windows keep their length."""
        return self._policy is None

    @property
    def config(self):
        """The arguments ``accumulation_steps`` and ``max_accumulation_steps``, serializable."""
        value = self._policy
        if isinstance(value, AccumulationSchedule):
            value = keras.saving.serialize_keras_object(value)
        return {
            "accumulation_steps": int(ops.convert_to_numpy(self.variable.value))
            if value is None
            else value,
            "max_accumulation_steps": self.maximum if self.follows_noise else None,
        }

    def assign(self, value):
        """Make the windows from now on `value` micro-batches long.

        Raises:
            ValueError: `value` is no integer >= 1, or the length follows something.
        """
        value = checked(value)
        if self._policy is not None:
            raise ValueError(
                f"accumulation_steps follows {_named(self._policy)}: got {value} beside it. "
                "Make an optimizer with an integer, and assign to that."
            )
        self.variable.assign(value)

    def follow(self, schedule, updates):
        """Follow `schedule` from now on; return whether that is new.

        Raises:
            ValueError: The length follows something else.
        """
        if self._policy is not None and getattr(self._policy, "steps", None) != schedule.steps:
            raise ValueError(
                f"accumulation_steps follows {_named(self._policy)}: got a callback "
                "AccumulationSchedule beside it. Use one of them."
            )
        is_new = self._policy is None
        self._policy = schedule
        if is_new:
            self.variable.assign(schedule(updates))
        return is_new

    def advance(self, updates, averages):
        """Set the length of the next window.

        Args:
            updates: Scalar integer tensor; the updates made.
            averages: The noise gauge's averages, for "auto".
        """
        if isinstance(self._policy, AccumulationSchedule):
            self.variable.assign(ops.cast(self._policy(updates), self.variable.dtype))
        elif self._policy == AUTO:
            self.variable.assign(self._advised(updates, averages))

    def _advised(self, updates, averages):
        now = self.variable.value
        wanted = ops.cast(noise_scale.micro_batches_for(averages, self.maximum), now.dtype)
        # Not more than double or half at a time: the averages reach back to other windows.
        wanted = ops.minimum(ops.maximum(wanted, now // 2), 2 * now)
        if self.maximum > 1:
            probes = ops.equal(ops.cast(updates, now.dtype) % PROBE_EVERY, 0)
            wanted = ops.maximum(wanted, ops.where(probes, 2, 1))
        return ops.where(averages[1] < SETTLED, now, ops.cast(wanted, now.dtype))

    def _first(self, value):
        if value == AUTO:
            return min(FIRST, self.maximum)
        if isinstance(value, AccumulationSchedule):
            return value.steps[0]
        return checked(value)


def checked(value):
    """Return `value` as an int >= 1.

    Raises:
        ValueError: `value` is anything else.
    """
    return arguments.count(
        "accumulation_steps",
        value,
        "Use 1 to update after every micro-batch, 'auto', or an AccumulationSchedule.",
    )


def _is_policy(value):
    return isinstance(value, AccumulationSchedule) or (isinstance(value, str) and value == AUTO)


def _named(policy):
    return "the noise scale ('auto')" if policy == AUTO else "an AccumulationSchedule"
