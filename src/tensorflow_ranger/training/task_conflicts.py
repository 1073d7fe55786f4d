"""TaskConflicts: how the gradients of several tasks stand to each other."""

import itertools

import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.checks.calls import made_as
from tensorflow_ranger.multitask import conflicts
from tensorflow_ranger.training.model_state import tasks_of
from tensorflow_ranger.training.task_losses import resolved_tasks


class TaskConflicts(keras.callbacks.Callback):
    """Logs the angles between the tasks' gradients of a model that trains with `multitask`.

    At the end of each epoch the logs, and with them `History`, get for each pair of tasks

    - ``"cosine_A_B"``: the mean cosine between their gradients over the epoch's batches, on the
      weights that both reach;
    - ``"conflict_A_B"``: the share of batches in which it was negative.

    Both are NaN if the two share no weight, or one had no gradient. Callbacks that come later in
    the list see them, too: put `keras.callbacks.TensorBoard` there. The model keeps a gradient per
    task from then on, until `multitask` is called again.

    Raises:
        ValueError: In `fit`: the model is not one of `multitask`.

    Example:
        >>> ranger.multitask(model, "sum")
        >>> history = model.fit(x, y, callbacks=[ranger.callbacks.TaskConflicts()])
        >>> history.history["conflict_domain_score"]
    """

    @made_as("TaskConflicts()")
    def set_model(self, model: keras.Model) -> None:
        """Make the model's steps observe the gradients."""
        super().set_model(model)
        self._tasks = tasks_of(model)
        if self._tasks is None:
            raise ValueError(
                "TaskConflicts looks at the gradients of several tasks: got a model without "
                'multitask. Call multitask(model, combine="sum") to look without a change.'
            )
        if not self._tasks.observed:
            self._tasks.observed = True
            model.train_function = None  # a compiled one does not observe
        compile_loss = keras_internals.compiled_loss(model)
        if compile_loss is not None and compile_loss.built:
            resolved_tasks(model)  # on JAX before fit takes the state; on TensorFlow its steps do

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Begin to count anew."""
        if self._tasks.statistics is not None:
            self._tasks.statistics.clear()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Add the angles to the logs."""
        model = self.model  # on JAX this brings the variables up to date
        assert model is not None
        cosines, shares = conflicts.summary(self._tasks.statistics.read())
        pairs = itertools.combinations(self._tasks.names, 2)
        for pair, cosine, share in zip(pairs, cosines.tolist(), shares.tolist(), strict=True):
            (logs if logs is not None else {}).update(
                {f"cosine_{'_'.join(pair)}": cosine, f"conflict_{'_'.join(pair)}": share}
            )
