"""multitask: one gradient per task, made into one update."""

from collections.abc import Callable, Mapping

import keras

from tensorflow_ranger.multitask.tasks import Tasks
from tensorflow_ranger.training.microbatch import check_trainable, install_whole, microbatch
from tensorflow_ranger.training.model_state import set_tasks
from tensorflow_ranger.training.train_function import TrainFunction


def multitask(
    model: keras.Model, combine: str | Callable | None, *, tasks: Mapping | None = None
) -> keras.Model:
    """Train `model` with the gradients of its tasks combined, in place of their sum.

    Tasks that share weights may pull them apart. With the tasks' gradients g_1, ..., g_T over the
    whole batch the update is made with

        G = sum_t a_t g_t,

    where the weights a are a function of the gradients' inner products:

    - ``"sum"``: 1 each, which is plain training;
    - ``"pcgrad"``: each gradient without what conflicts with others (Yu et al. 2020);
    - ``"mgda"``: the shortest of all mixtures (Sener & Koltun 2018);
    - ``"cagrad"``: near the mean, best for the task that gains least (Liu et al. 2021);
    - ``"upgrad"``: the mean of the gradients, each without its conflicts (Quinton & Rey 2024);
    - ``"aligned"``: gradients of equal strength in every direction (Senushkin et al. 2023).

    All but the first two have the length of a mean of gradients, not of a sum. Weights that only
    one task reaches, such as the layers of an output, take that task's gradient as it is.
    Regularizers and other added losses belong to no task, and their gradient is added. The
    `loss_weights` of `compile` scale a task's gradient before it is combined.

    Works with `microbatch`, called before or after: each task's gradient is summed over the
    micro-batches, then the sums are combined once. One gradient per task is held in memory, and
    one backward pass per task is run; ``"sum"`` holds one and runs one, unless a `TaskConflicts`
    looks at the tasks. A saved model is a plain Keras model: call this function
    again after loading it.

    Args:
        model: A Keras model with several losses, compiled before `fit` as usual.
        combine: One of the names above, or None to train on the sum of the losses again.
        tasks: Dict from the name of a task to a list of its losses, which are called as their
            outputs are. None makes each loss a task.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `combine` is none of the names; the model overrides `train_step`. In `fit`: the
            losses are not those of `tasks`, or make fewer than two tasks; the model overrides
            `compute_loss`; the optimizer's window is longer than a batch.

    Example:
        >>> model.compile("adam", loss={"domain": "categorical_crossentropy", "score": "mse"})
        >>> ranger.multitask(model, combine="pcgrad")
        >>> ranger.microbatch(model, 64)
        >>> model.fit(x, {"domain": domain, "score": score}, batch_size=1024)
    """
    check_trainable(model, "multitask")
    batcher = TrainFunction.of(model)
    if combine is None:
        set_tasks(model, None)
        if batcher is not None and batcher.is_whole:
            microbatch(model, None)
        else:
            model.train_function = None
        return model
    set_tasks(model, Tasks(combine, tasks))
    if batcher is None:
        install_whole(model)
    else:
        # They are of one gradient, where callbacks looked before.
        batcher.maker.noise = batcher.maker.norms = None
    model.train_function = None
    return model
