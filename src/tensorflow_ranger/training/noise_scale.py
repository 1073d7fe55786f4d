"""NoiseScale: how large a batch the problem can use, measured while it trains."""

import math

import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.batch_size.noise_scale import NoiseEstimate
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.checks.calls import made_as
from tensorflow_ranger.checks.wrapped_optimizers import chain
from tensorflow_ranger.training.train_function import TrainFunction


class NoiseScale(keras.callbacks.Callback):
    """Measures the gradient noise scale from the micro-batches of each window.

    The noise scale is the batch at which the noise of the gradient is as large as the gradient.
    Below it, twice the batch takes almost half the updates; above it, more samples buy almost
    nothing. It grows as training goes on. With the covariance S of a sample's gradient g,

        noise scale = tr(S) / norm(g)^2.

    The model trains with `microbatch` or with a `RangerOptimizer`. Each micro-batch costs one more
    pass over its gradient, and `microbatch` sums into a buffer, not into SGD's momentum. At the end
    of each epoch the logs, and with them `History`, get

    - ``"noise_scale"``, ``"noise_scale_low"``, ``"noise_scale_high"``: the scale and its 95 % range
      in samples, infinite where no gradient is seen behind the noise, NaN before anything is known;
    - ``"advised_batch"``: the scale to two digits.

    Callbacks that come later in the list see them, too: put `keras.callbacks.TensorBoard` there.

    Args:
        batch_size: Integer >= 1; samples of a micro-batch, which a `RangerOptimizer` is not told:
            what `fit` is given. None counts in micro-batches there. `microbatch` knows its samples.
        memory: Integer >= 2; windows that the averages reach back.
        verbose: Whether to print `advice` when `fit` ends.

    Attributes:
        estimate: The last `NoiseEstimate`, or None.
        advice: What the estimate means, in words.
        averages: List of the floats that the estimate is made of. With `microbatch` no saved model
            holds them: assign those of a stopped `fit`, before the next one or within it, to go on
            measuring where it ended. None before `fit`, and with a `RangerOptimizer`, whose saved
            state holds them.

    Raises:
        ValueError: An argument is out of range; in `fit`, the model has neither `microbatch` nor a
            `RangerOptimizer`, or combines tasks.

    Example:
        >>> ranger.microbatch(model, 64)
        >>> history = model.fit(x, y, batch_size=2048, callbacks=[ranger.callbacks.NoiseScale()])
        >>> history.history["noise_scale"]

    References:
        McCandlish et al., 2018, equations 2.8 and A.2 to A.4. https://arxiv.org/abs/1812.06162
    """

    def __init__(
        self,
        batch_size: int | None = None,
        *,
        memory: int = noise_scale.MEMORY,
        verbose: bool = True,
    ):
        super().__init__()
        if batch_size is not None:
            arguments.count("batch_size", batch_size, "It is what fit is given.")
        if arguments.count("memory", memory, "It is a number of windows.") < 2:
            raise ValueError("memory must be at least 2 windows: got 1. A range needs two.")
        self._batch_size = batch_size
        self._memory = memory
        self._verbose = verbose
        self._statistics = None
        self._first_averages = None  # what the next `fit` begins with, if it was told
        self.estimate = None
        self._epoch_updates = None

    @property
    def advice(self) -> str:
        """What the estimate means for the batch, in a sentence or two."""
        if self.estimate is None:
            remedy = "microbatch a smaller size, or fit a larger batch_size"
            if self._statistics is None:
                remedy = "RangerOptimizer more accumulation_steps"
            return (
                "The noise scale is not known yet: it takes windows of two micro-batches or more. "
                f"Give {remedy}."
            )
        words = _in_words(self.estimate, self._unit)
        if self._epoch_updates is not None and self._epoch_updates <= 1:
            words += (
                " The data set is no larger than this batch: every update has seen all of it, and "
                "a smaller batch is the way to more updates."
            )
        return words

    @property
    def averages(self) -> list[float] | None:
        """The numbers that the estimate is made of."""
        if self._statistics is None:
            return self._first_averages
        return self._statistics.read().tolist()

    @averages.setter
    def averages(self, values):
        if self._statistics is None:
            self._first_averages = values
        elif values is not None:
            self._statistics.values.assign(values)

    @made_as("NoiseScale()")
    def set_model(self, model: keras.Model) -> None:
        """Make the model's steps measure."""
        super().set_model(model)
        batcher = TrainFunction.of(model)
        if batcher is not None:
            if batcher.maker.measure_noise(self._memory):
                model.train_function = None  # a compiled one does not measure
            self._statistics = batcher.maker.noise
            keras_internals.add_metric(model, self._statistics)
            self.averages, self._first_averages = self._first_averages, None
            return
        optimizer = _measuring(model.optimizer)
        if optimizer is None:
            raise ValueError(
                "NoiseScale compares micro-batches: got a model without any. Call "
                "microbatch(model, size) before fit, or compile with a RangerOptimizer."
            )
        if optimizer.measure_noise(self._memory):
            model.train_function = None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Count the epoch's updates."""
        self._updates_before = self._updates()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Add the scale to the logs."""
        self._epoch_updates = self._updates() - self._updates_before
        self._read()
        estimate = self.estimate
        if logs is None:
            return
        logs["noise_scale"] = estimate.scale if estimate else math.nan
        logs["noise_scale_low"] = estimate.low if estimate else math.nan
        logs["noise_scale_high"] = estimate.high if estimate else math.nan
        logs["advised_batch"] = _rounded(estimate.scale) if estimate else math.nan

    def on_train_end(self, logs: dict | None = None) -> None:
        """Print the advice."""
        if self.estimate is None:
            self._read()  # `fit` has closed a window that no epoch filled
        if self._verbose:
            print(self.advice)

    @property
    def _unit(self):
        return "micro-batches" if self._statistics is None and not self._batch_size else "samples"

    def _updates(self):
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _read(self):
        optimizer = _measuring(self.model.optimizer)
        if self._statistics is not None:
            estimate = NoiseEstimate.of(self._statistics.read())
            if estimate is not None and optimizer is not None:
                estimate = estimate.in_windows_of(optimizer.accumulation_steps)
            self.estimate = estimate
            return
        estimate = None if optimizer is None else optimizer.noise_scale
        if estimate is not None and self._batch_size:
            estimate = estimate.times(self._batch_size)
        self.estimate = estimate


def _measuring(optimizer):
    return next((each for each in chain(optimizer) if hasattr(each, "measure_noise")), None)


def _rounded(scale):
    if not math.isfinite(scale) or scale < 1:
        return max(scale, 1.0)
    digits = 1 - math.floor(math.log10(scale))
    return round(scale, min(digits, 0))


def _in_words(estimate, unit):
    batch = _number(estimate.effective_batch)
    if not math.isfinite(estimate.scale):
        return (
            f"Your effective batch of {batch} {unit} is smaller than what this problem can use "
            "now: the noise hides the gradient, and a larger one takes fewer updates in the same "
            "proportion."
        )
    advised = _rounded(estimate.scale)
    ratio = estimate.effective_batch / advised
    high = "no end" if math.isinf(estimate.high) else _number(estimate.high)
    scale = f"noise scale {_number(estimate.scale)}, 95 % range {_number(estimate.low)} to {high}"
    if 0.5 <= ratio <= 2:
        return (
            f"Your effective batch of {batch} {unit} is about what this problem can use now "
            f"({scale})."
        )
    if ratio > 1:
        compared = f"{_times(ratio)} times what this problem can use now"
    else:
        compared = f"{_times(1 / ratio)} times smaller than what this problem can use now"
    return (
        f"Your effective batch of {batch} {unit} is {compared} ({scale}): {_number(advised)} would "
        f"take {_times(estimate.updates_with(advised))} times the updates and "
        f"{_times(estimate.samples_with(advised))} times the {unit}."
    )


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(value):
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
