"""GradientNorm: how long the gradients of updates and micro-batches are, and what clipping does."""

import warnings

import keras

from tensorflow_ranger.checks.calls import made_as
from tensorflow_ranger.checks.wrapped_optimizers import chain
from tensorflow_ranger.training.measured_training import MeasuredTraining
from tensorflow_ranger.training.model_state import attach, attached, tasks_of
from tensorflow_ranger.training.train_function import TrainFunction
from tensorflow_ranger.training.update_norms import UpdateNorms


class GradientNorm(keras.callbacks.Callback):
    """Logs the norm of each update's gradient, of its micro-batches', and what clipping removes.

    Its logs, and with them the progress bar, `History` and TensorBoard, get these means over the
    epoch's updates so far, as Keras' metrics are:

    - ``"gradient_norm"``: the Euclidean norm over all weights of the gradient that the optimizer is
      given, before it clips;
    - ``"microbatch_gradient_norm"``: the mean norm of the gradients of the update's micro-batches,
      weighted by what the loss divides by (samples, or the sum of sample weights). It is never
      smaller, up to rounding: what it is larger by cancels between the micro-batches;
    - ``"clipped_updates"``: the fraction of updates that clipping made shorter;
    - ``"clipped_fraction"``: the part of the norm that clipping removed,
      ``1 - norm(clipped) / norm``, zero where it removed nothing.

    The last two are there if the optimizer has ``clipnorm``, ``global_clipnorm`` or ``clipvalue``.

    In plain `fit` a batch is one micro-batch. With a `RangerOptimizer`, or an optimizer of Keras
    with ``gradient_accumulation_steps``, the update is that of the window, and its micro-batches
    are all of the window's; a window that only the end of `fit` closes is not counted. `centralize`
    and `adaptive_clipping` of a `RangerOptimizer` come after ``"gradient_norm"`` and before what
    the last two compare.

    With mixed precision the norms are those of the gradient without the loss' scale. An update
    whose gradient holds an infinity or a NaN is not counted; if none is, the means are NaN. Over
    several replicas the gradient is the one they have summed, and a micro-batch is that of a
    replica. In plain `fit` under `tf.distribute` they sum gradients once more for it.

    Each micro-batch costs one more pass over its gradient, and `microbatch` sums into a buffer, not
    into SGD's momentum. The weights are the same without the callback.

    Raises:
        ValueError: In `fit`: the model combines tasks, or one optimizer of a `MultiOptimizer`
            accumulates gradients by itself.

    Example:
        >>> model.compile(keras.optimizers.Adam(global_clipnorm=1.0), loss="mse")
        >>> ranger.microbatch(model, 64)
        >>> history = model.fit(x, y, batch_size=2048, callbacks=[ranger.callbacks.GradientNorm()])
        >>> history.history["gradient_norm"]
    """

    @made_as("GradientNorm()")
    def set_model(self, model: keras.Model) -> None:
        """Make what the model's steps measure with."""
        super().set_model(model)
        if tasks_of(model) is not None:
            raise ValueError(
                "GradientNorm measures one gradient: got a model with one per task. TaskConflicts "
                "compares those."
            )
        self._batcher = TrainFunction.of(model)
        variables = len(model.metrics_variables), len(model.optimizer.variables)
        self._norms = _norms_of(model)
        if variables != (len(model.metrics_variables), len(model.optimizer.variables)):
            model.train_function = None  # a compiled one does not carry the new ones

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Let the steps measure."""
        if self._batcher is not None:
            self._batcher.maker.norms = self._norms
        else:
            MeasuredTraining.given(self.model).begin(self._norms)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Begin to count anew."""
        self._norms.clear()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Warn if another optimizer trains the model."""
        if self._batcher is None and not self._norms.has_seen and self.model.trainable_variables:
            warnings.warn(
                "GradientNorm has no gradient to measure: "
                f"{type(self.model).__name__}.train_step has not called "
                f"{type(self.model.optimizer).__name__}, the model's optimizer. Update with "
                "self.optimizer, which compile sets.",
                stacklevel=2,
            )

    def on_train_end(self, logs: dict | None = None) -> None:
        """Let the model train on without the norms; `microbatch` does so by itself."""
        if self._batcher is None:
            MeasuredTraining.given(self.model).end()


_NAME = "gradient_norms"


def _norms_of(model):
    """Return what measures the gradients of the optimizer of `model`, ready to begin."""
    for optimizer in chain(model.optimizer):
        if hasattr(optimizer, "measure_norms"):
            norms = optimizer.measure_norms()
            norms.begin(is_open=optimizer.pending_micro_batches > 0)
            return norms
    if attached(model, _NAME) is None:
        attach(model, _NAME, UpdateNorms(model))
    norms = attached(model, _NAME)
    norms.begin()
    return norms
