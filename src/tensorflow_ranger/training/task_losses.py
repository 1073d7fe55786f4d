"""The tasks of a model, found among its compiled losses."""

import keras

from tensorflow_ranger.multitask import conflicts
from tensorflow_ranger.multitask.tasks import tasks_of
from tensorflow_ranger.training.step_statistics import StepStatistics, attach


def resolved_tasks(model):
    """Return the model's `Tasks`, with their losses found, or None.

    Args:
        model: A compiled and built Keras model.

    Raises:
        ValueError: The losses are not those of the tasks, or can't be taken apart; the optimizer's
            window is longer than a batch.
    """
    tasks = tasks_of(model)
    if tasks is None:
        return None
    if type(model).compute_loss is not keras.Model.compute_loss:
        raise ValueError(
            f"multitask takes apart the losses of compile: got {type(model).__name__}, which "
            "overrides compute_loss. Give compile one loss per output."
        )
    _check_window(model.optimizer)
    tasks.resolve(_loss_names(model))
    if tasks.observed:
        if tasks.statistics is None:
            tasks.statistics = StepStatistics("task_conflicts", conflicts.size(len(tasks.names)))
        attach(model, tasks.statistics)
    return tasks


def _loss_names(model):
    if model._compile_loss is None:
        return []
    return [
        record.name or "_".join(map(str, record.path)) or "loss"
        for record in model._compile_loss._flat_losses
    ]


def _check_window(optimizer):
    while optimizer is not None:
        steps = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        if hasattr(optimizer, "accumulation_steps"):
            steps = optimizer.accumulation_steps
        if steps != 1:
            raise ValueError(
                "multitask combines gradients once per batch, and so a window must be a batch: got "
                f"{type(optimizer).__name__} with windows of {steps}. Set that to 1, give fit a "
                f"batch_size {steps} times as large, and call microbatch(model, size) with the "
                "present one."
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)
