"""microbatch: the whole batch's weights with one micro-batch's memory, inside Keras' own fit."""

import functools
import numbers
import operator

import keras

from tensorflow_ranger.backend import steps
from tensorflow_ranger.batch_size.plan import parse_bytes
from tensorflow_ranger.batch_size.size_policy import WHOLE
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.checks.calls import called_as
from tensorflow_ranger.checks.models import require_model
from tensorflow_ranger.multitask.tasks import Tasks
from tensorflow_ranger.training.measured_training import MeasuredTraining
from tensorflow_ranger.training.model_copies import copy_overrides
from tensorflow_ranger.training.model_state import attach, attached, set_tasks, tasks_of
from tensorflow_ranger.training.train_function import TrainFunction


@called_as("microbatch(model, 32)")
def microbatch(
    model: keras.Model,
    size: int | str | None,
    *,
    memory_limit: float | str | None = None,
    accumulator_dtype: str | None = None,
    loss: str | None = None,
    padding: float | None = None,
    rematerialize: bool | int | None = None,
    head_chunks: int | None = None,
) -> keras.Model:
    """Train `model` on whole batches, a micro-batch of `size` samples at a time.

    The batch is a choice about learning, the micro-batch a fact about the machine. After this call
    ``model.fit(x, y, batch_size=4096)`` gives the weights of batches of 4096 in the memory of
    micro-batches of `size`: the gradient is

        G = (sum_k dS_k/dw) / (sum_k D_k),

    with the summed losses ``S_k`` and masses ``D_k`` (samples, unmasked tokens, or the sum of the
    sample weights: what the loss divides by) of the micro-batches, and the optimizer is called once
    per batch. A remainder smaller than `size` is a micro-batch of its own. Metrics, callbacks,
    `History`, validation and saving are Keras'. A saved model is a plain Keras model: call this
    function again after loading it.

    A loss in which samples meet (contrastive, ranking, survival analysis) is computed once per
    batch, on the outputs of all its micro-batches: they are run forward to get them, and forward
    and backward again to pull the loss' gradient back. That is exact, and takes one forward pass
    more: 4/3 of the time. The batch's outputs must fit the memory.

    Exact but for layers that look at the batch: `BatchNormalization` normalizes each micro-batch by
    its own statistics, and its moving statistics move once per batch, by the batch's. What layers
    draw through `keras.random`, such as dropout's masks, is what they draw for the whole batch; on
    PyTorch from a generator that is not Keras'. What layers assign and add, and metric functions,
    are measured on the first samples, whole and in two halves: a warning names what is neither a
    mean nor a sum over samples. `verify` says what differs for a model.

    Where memory runs out, the size is halved and the batch goes on; after a while a larger one is
    tried again. Where not even one sample fits, the backward pass runs layers again, and then
    logits are computed in chunks. On JAX and TensorFlow the batch begins again from an unchanged
    model.

    Args:
        model: A Keras model, compiled before `fit` as usual.
        size: Samples per micro-batch: an integer >= 1; ``"auto"`` for the fastest that fits the
            memory, found during the first batches; None to train on whole batches again.
        memory_limit: For ``size="auto"``: bytes that training may need, as a number or as text
            such as ``"4GB"``. On JAX this counts the compiled step's arguments, results and
            temporaries; elsewhere what the device or, on a CPU, the process has in use.
        accumulator_dtype: Name of the floating dtype of the sum of gradients. None takes float32,
            or float64 for float64 variables. With SGD and momentum the sum is held in the momentum
            itself, if that has this dtype.
        loss: "shares" to give each micro-batch its own part of the loss; "whole" to compute the
            loss on the outputs of the whole batch; None to decide on the first batch. It is "whole"
            for a model that overrides `compute_loss`, for a loss that returns one number for a
            batch, and for one that gives some samples other numbers together than apart.
        padding: Number that stands behind the end of each sample in padded sequences; None to take
            samples as long as they are given. With it, the samples of a batch are sorted by length,
            and each micro-batch is trimmed to its longest sample: the same weights in less time. A
            micro-batch then has as many samples as have the time steps of `size` padded ones, at
            most. The time axis is the second one of each input; declare it as
            ``keras.Input((None, ...))``. Compiled steps are made for 8 lengths at most.
        rematerialize: Whether the backward pass runs the layers again, in place of keeping what
            they make for it: the same weights in less memory and at most 4/3 of the time. True
            always to: with ``size="auto"`` for as few layers as the memory allows, else in as many
            segments as need the least memory; an integer >= 2 for so many segments; False never to;
            None to do so where not even one sample fits otherwise, and with ``size="auto"`` where
            larger micro-batches that fit this way are faster.
        head_chunks: In how many chunks to compute the logits of a micro-batch, their loss and its
            gradient, where the last layer is `Dense` or a reversed `ReversibleEmbedding` and the
            loss is one per row of outputs, such as per token: the same weights, and no more logits
            in memory than those of a chunk. An integer >= 1; 1 for all at once; None to choose: in
            chunks where the logits would be larger than all else that the forward pass keeps.

    Returns:
        `model`. Its attribute `microbatch_plan` is a `MicrobatchPlan` that tells the size in use.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: An argument is out of range; the model overrides `train_step` or
            `make_train_function`. In `fit`: the optimizer accumulates gradients itself; there are
            no targets for the loss; layers were frozen or unfrozen since `compile`; with
            `padding`, the model computes something else without the padding; with `head_chunks`,
            the logits must stay whole; layers were made under `keras.RematScope`.
        MemoryError: In `fit`: not even one sample fits.

    Example:
        >>> model.compile(optimizer="adam", loss="mse")
        >>> ranger.microbatch(model, 32)
        >>> model.fit(x, y, batch_size=4096)

    References:
        Losses of the whole batch: Gao et al. 2021, "Scaling deep contrastive learning batch size
        under memory limited setup", section 3, here for any loss.
        Ghost batch norm: Hoffer et al. 2017, "Train longer, generalize better", section 4.
    """
    if size is None:
        require_model(model, "microbatch")
        _uninstall(model)
        if tasks_of(model) is not None:
            install_whole(model)
        return model
    check_trainable(model, "microbatch")
    _check(size, memory_limit, loss, padding, rematerialize)
    if head_chunks is not None:
        arguments.count(
            "head_chunks",
            head_chunks,
            "It is the number of chunks in which the logits of a micro-batch are computed; None "
            "chooses it.",
        )
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    return install(
        model,
        size,
        limit=limit,
        accumulator_dtype=accumulator_dtype,
        loss=loss,
        padding=padding,
        rematerialize=rematerialize,
        head_chunks=head_chunks,
    )


def install_whole(model):
    """Let the steps of `microbatch` train whole batches of `model`, for what only they can do."""
    return install(model, WHOLE)


def check_trainable(model, function):
    """Check that `function` may replace the training step of `model`.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It overrides `train_step` or `make_train_function`, in its class or by an
            attribute of its own.
    """
    require_model(model, function)
    name = overridden_step(model)
    if name is not None:
        raise ValueError(
            f"{function} replaces {name}, and {type(model).__name__} overrides it. Use "
            "RangerOptimizer, which keeps your training step, or call accumulate_gradients in it."
        )


def overridden_step(model):
    """Return the method of Keras' training step that `model` has one of its own for, or None."""
    for name in ("train_step", "make_train_function"):
        is_ours = TrainFunction.of(model) is not None or MeasuredTraining.of(model) is not None
        if name in vars(model) and not (name == "make_train_function" and is_ours):
            return name
        if not getattr(type(model), name).__module__.startswith("keras."):
            return name
    return None


def install(model, size, **options):
    """Let micro-batches of `size` train `model`, whose arguments have been checked.

    Args:
        model: A Keras model.
        size: Samples, "auto", or `WHOLE`.
        **options: Those of `TrainFunction`.
    """
    train_function = TrainFunction(model, size, **options)
    attach(model, "microbatch", train_function)
    model.make_train_function = train_function.make_train_function
    vars(model).update(steps.trainer_overrides(model))
    vars(model).update(
        copy_overrides(
            model, lambda: functools.partial(_reinstalled, size, options, tasks_of(model))
        )
    )
    model.train_function = None
    return model


def _reinstalled(size, options, tasks, model):
    set_tasks(model, None if tasks is None else Tasks(tasks.combine, tasks.members))
    return install(model, size, **options)


def _uninstall(model):
    if attached(model, "microbatch") is not None:
        overrides = (*steps.trainer_overrides(model), *copy_overrides(model, None))
        for name in ("make_train_function", "microbatch_plan", *overrides):
            del vars(model)[name]
        attach(model, "microbatch", None)
        model.train_function = model.test_function = None


def _check(size, memory_limit, loss, padding, rematerialize):
    if size != "auto":
        arguments.count(
            "size",
            size,
            "It is the number of samples in one forward and backward pass; 'auto' finds it, and "
            "None undoes microbatch.",
        )
    if memory_limit is not None and size != "auto":
        raise ValueError(
            f"memory_limit is for size='auto': got memory_limit={memory_limit!r} and size={size}. "
            "Leave one out."
        )
    if isinstance(padding, bool) or not isinstance(padding, numbers.Real | None):
        raise ValueError(
            "padding must be the number that stands behind the end of each sample, such as 0, or "
            f"None: got {padding!r}."
        )
    if not isinstance(rematerialize, bool | None):
        try:
            is_number = operator.index(rematerialize) >= 2
        except TypeError:
            is_number = False
        if not is_number:
            raise ValueError(
                "rematerialize must be True, False, None or a number of segments >= 2: got "
                f"{rematerialize!r}."
            )
    if loss not in (None, "shares", "whole"):
        raise ValueError(
            f"loss must be None, 'shares' or 'whole': got {loss!r}. The loss function itself is "
            "given to model.compile; with None the first batch decides."
        )
