"""GradientNorm: how long the gradients of updates and micro-batches are, and what clipping does."""

import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.checks.wrapped_optimizers import chain
from tensorflow_ranger.rules import gradient_norms
from tensorflow_ranger.training.model_state import attach, attached, tasks_of
from tensorflow_ranger.training.step_statistics import StepStatistics
from tensorflow_ranger.training.task_losses import window_of
from tensorflow_ranger.training.train_function import TrainFunction


class GradientNorm(keras.callbacks.Callback):
    """Logs the norm of each update's gradient, of its micro-batches', and what clipping removes.

    The model trains with `microbatch`. Its logs, and with them the progress bar, `History` and
    TensorBoard, get these means over the epoch's updates so far, as Keras' metrics are:

    - ``"gradient_norm"``: the Euclidean norm over all weights of the gradient that the optimizer is
      given, before it clips;
    - ``"microbatch_gradient_norm"``: the mean norm of the gradients of the update's micro-batches,
      weighted by what the loss divides by (samples, or the sum of sample weights). It is never
      smaller, up to rounding: what it is larger by cancels between the micro-batches;
    - ``"clipped_updates"``: the fraction of updates that clipping made shorter;
    - ``"clipped_fraction"``: the part of the norm that clipping removed,
      ``1 - norm(clipped) / norm``, zero where it removed nothing.

    The last two are there if the optimizer has ``clipnorm``, ``global_clipnorm`` or ``clipvalue``.
    With mixed precision the norms are those of the gradient without the loss' scale. An update
    whose gradient holds an infinity or a NaN is not counted; if none is, the means are NaN. Over
    several replicas the gradient is the one they have summed, and a micro-batch is that of a
    replica.

    Each micro-batch costs one more pass over its gradient, and `microbatch` sums into a buffer, not
    into SGD's momentum. The weights are the same without the callback.

    Raises:
        ValueError: In `fit`: the model trains without `microbatch` or combines tasks, or its
            optimizer is a `RangerOptimizer` that makes one update of several batches or changes
            gradients before they are clipped.

    Example:
        >>> model.compile(keras.optimizers.Adam(global_clipnorm=1.0), loss="mse")
        >>> ranger.microbatch(model, 64)
        >>> history = model.fit(x, y, batch_size=2048, callbacks=[ranger.callbacks.GradientNorm()])
        >>> history.history["gradient_norm"]
    """

    def set_model(self, model: keras.Model) -> None:
        """Make the model's steps measure."""
        super().set_model(model)
        batcher = TrainFunction.of(model)
        if batcher is None:
            raise ValueError(
                "GradientNorm reads the gradients of microbatch: got a model that trains without "
                "it. Call microbatch(model, size) before fit; a size as large as the batch makes "
                "one micro-batch of it."
            )
        if tasks_of(model) is not None:
            raise ValueError(
                "GradientNorm measures one gradient: got a model with one per task. TaskConflicts "
                "compares those."
            )
        for optimizer in chain(model.optimizer):
            _require_own_update(optimizer)
        self._statistics = attached(model, _NAME)
        if self._statistics is None:
            self._statistics = StepStatistics("gradient_norms", gradient_norms.SIZE)
            attach(model, _NAME, self._statistics)
            keras_internals.add_metric(model, self._statistics)
            model.train_function = None  # a compiled one does not carry it
        self._batcher = batcher

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Let the steps log the norms."""
        self._batcher.maker.norms = self._statistics

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Begin to count anew."""
        self._statistics.clear()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Let the model train on without the norms."""
        self._batcher.maker.norms = None


_NAME = "gradient_norms"


def _require_own_update(optimizer):
    window = window_of(optimizer)
    if window != 1:
        raise ValueError(
            "GradientNorm measures the update of each batch: got "
            f"{type(optimizer).__name__} with windows of {window} batches. Give fit the batch_size "
            "of a whole window, and use windows of 1."
        )
    changes = [n for n in ("adaptive_clipping", "centralize") if getattr(optimizer, n, None)]
    if changes and hasattr(optimizer, "inner_optimizer"):
        raise ValueError(
            "GradientNorm measures the gradient that an optimizer clips: got "
            f"{type(optimizer).__name__} with {' and '.join(changes)}, which changes it before. "
            "Leave one out."
        )
