"""The tasks of a model, found among its compiled losses."""

import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.checks.wrapped_optimizers import chain
from tensorflow_ranger.multitask import conflicts
from tensorflow_ranger.training.model_state import tasks_of
from tensorflow_ranger.training.step_statistics import StepStatistics


def resolved_tasks(model):
    """Return the model's `Tasks`, with their losses found, or None if one gradient does for all.

    Args:
        model: A compiled and built Keras model.

    Raises:
        ValueError: The losses are not those of the tasks, or can't be taken apart.
    """
    tasks = tasks_of(model)
    if tasks is None:
        return None
    if type(model).compute_loss is not keras.Model.compute_loss:
        raise ValueError(
            f"multitask takes apart the losses of compile: got {type(model).__name__}, which "
            "overrides compute_loss. Give compile one loss per output."
        )
    tasks.resolve(_loss_names(model))
    if tasks.observed:
        if tasks.statistics is None:
            tasks.statistics = StepStatistics("task_conflicts", conflicts.size(len(tasks.names)))
        keras_internals.add_metric(model, tasks.statistics)
    return None if tasks.is_plain else tasks


def require_whole_windows(model):
    """Raise an error if `model` has tasks, and windows that are longer than a batch.

    Args:
        model: A compiled Keras model. On JAX, `fit` has not taken the optimizer's state yet.

    Raises:
        ValueError: The optimizer's window is longer than a batch.
    """
    if tasks_of(model) is None:
        return
    for optimizer in chain(model.optimizer):
        window = window_of(optimizer)
        if window != 1:
            raise ValueError(
                "multitask combines gradients once per batch, and so a window must be a batch: got "
                f"{type(optimizer).__name__} with windows of {window}. Use windows of 1, give fit "
                "the batch_size of a whole window, and call microbatch(model, size) with the "
                "present one."
            )


def require_single_update(optimizer):
    """Raise if an optimizer of Keras makes one update of several batches.

    Raises:
        ValueError: It, or one that it wraps, has `gradient_accumulation_steps`.
    """
    for each in chain(optimizer):
        accumulated = getattr(each, "gradient_accumulation_steps", None)
        if accumulated:
            raise ValueError(
                "microbatch makes one update of each batch, and the optimizer accumulates several: "
                f"got {type(each).__name__}(gradient_accumulation_steps={accumulated}). Leave it "
                f"out, and give fit a batch_size {accumulated} times as large."
            )


def window_of(optimizer):
    """Return how many calls of an optimizer make an update: a number, "auto" or "a schedule"."""
    if hasattr(optimizer, "accumulation_steps"):
        steps = optimizer.get_config()["accumulation_steps"]
        return "a schedule" if isinstance(steps, dict) else steps
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1


def _loss_names(model):
    compile_loss = keras_internals.compiled_loss(model)
    if compile_loss is None:
        return []
    return [
        record.name or "_".join(map(str, record.path)) or "loss"
        for record in keras_internals.loss_records(compile_loss)
    ]
