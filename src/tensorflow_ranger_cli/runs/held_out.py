"""Evaluation by one process of a model that several train."""

import keras


class HeldOut(keras.callbacks.Callback):
    """Evaluates a plain copy of the model after each epoch, as `fit` does with validation data.

    Batches of any size will do for it, and the other processes need not take part.

    Args:
        model: The compiled model.
        data: Tuple ``(x, y)``.
        task: The `Task` that the model is trained for.
        engine: The `Engine` that trains the model.
    """

    def __init__(self, model, data, task, engine):
        super().__init__()
        self._data = data
        self._task = task
        self._engine = engine
        with engine.apart():
            # `clone_model` would build an optimizer, too, for which the processes must meet.
            self._copy = type(model).from_config(model.get_config())
            self._copy.compile(**task.compile_arguments())

    def on_epoch_end(self, epoch, logs=None):
        """Add the results to the logs."""
        results = self.evaluate(self.model)
        (logs if logs is not None else {}).update({f"val_{k}": v for k, v in results.items()})

    def evaluate(self, model):
        """Return the loss and the metrics of `model`, by their names."""
        weights = model.get_weights()
        with self._engine.apart():
            self._copy.set_weights(weights)
            return self._copy.evaluate(*self._data, verbose=0, return_dict=True)

    def judge(self, model):
        """Return the task's figures of `model`, as `Task.judge` does."""
        results = self.evaluate(model)
        with self._engine.apart():
            return self._task.judge(self._copy, self._data, results)
