"""How many micro-batches make a window: a number, a schedule, or what the noise scale advises."""

import keras
from keras import ops

from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.optimizers.accumulation_schedule import AccumulationSchedule

AUTO = "auto"
FIRST = 4  # the window of "auto" until the noise is known
SETTLED = 10  # windows after which "auto" begins to follow
PROBE_EVERY = 8  # updates: one micro-batch alone shows no noise, and two do


class WindowLength:
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
