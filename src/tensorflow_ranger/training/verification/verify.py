"""verify: whether micro-batches give the gradient of the whole batch, and if not, why."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals, replicas
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.checks.calls import called_as
from tensorflow_ranger.checks.models import require_model
from tensorflow_ranger.training.examination import resolution_of
from tensorflow_ranger.training.fit_checks import require_targets
from tensorflow_ranger.training.microbatch import overridden_step
from tensorflow_ranger.training.padding import Padding
from tensorflow_ranger.training.train_function import TrainFunction
from tensorflow_ranger.training.verification.dry_run import (
    differences_of,
    is_over,
    run_both,
    state_differences_of,
)
from tensorflow_ranger.training.verification.inertness import inertness_reason
from tensorflow_ranger.training.verification.reasons import (
    crossing_reasons,
    loss_notes,
    loss_reasons,
    state_reasons,
    training_reasons,
)

_ROWS = 20  # variables in the table


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found; printing it gives a table and a verdict.

    Args:
        differences: For each variable's path, the largest difference between an element of the two
            gradients, relative to the variable's scale.
        tolerance: The largest difference that rounding explains.
        reasons: Sentences that say why the gradients or the state differ; empty if they are the
            same.
        size: Samples per micro-batch.
        samples: Samples of the batch.
        state: For each variable that layers assign, the largest difference between an element of
            its two values after the batch, relative to how far it moved.
        notes: Sentences about what follows another path than `fit` without `microbatch`, though
            the gradients agree.
    """

    differences: Mapping[str, float]
    tolerance: float
    reasons: tuple[str, ...]
    size: int
    samples: int
    state: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether no difference, of gradients or of state, is larger than rounding explains."""
        both = (*self.differences.values(), *self.state.values())
        return all(difference <= self.tolerance for difference in both)

    def __str__(self) -> str:
        # A NaN is the largest.
        both = {**self.differences, **self.state}
        ordered = sorted(both.items(), key=lambda item: -np.nan_to_num(item[1], nan=9))
        width = max([len("variable"), *(len(path) for path, _ in ordered[:_ROWS])])
        lines = [f"{'variable':<{width}}  difference"]
        lines += [f"{path:<{width}}  {difference:>10.1e}" for path, difference in ordered[:_ROWS]]
        if len(ordered) > _ROWS:
            lines.append(f"... and {len(ordered) - _ROWS} variables that differ less")
        lines.append(
            f"{'Same to rounding' if self.exact else 'Differs'}: the gradient of {self.samples} "
            f"samples whole and {self.size} at a time. Rounding explains {self.tolerance:.1e}."
        )
        return "\n".join([*lines, *(f"- {text}" for text in (*self.reasons, *self.notes))])


@called_as("verify(model, (x, y), 16)")
def verify(model: keras.Model, batch: Any, size: int) -> Verification:
    """Compare a batch's gradient with the sum of its micro-batches', and say why they differ.

    `microbatch` is exact but for what looks across the samples of a batch, or draws at random what
    is no function of a sample's place in the batch. This function runs `batch` once whole, by
    Keras' own loss, and once `size` samples at a time, as `microbatch` does, from the same weights
    and seeds. The batch must fit the memory, so take a small one. An element of a variable's
    gradient G, the sum of micro-batches' shares g_k, is
    compared relative to the variable's scale,

        max abs(G - sum_k g_k) / max(s_v, min(1, 32 sqrt(eps)) max_v s_v),
        s_v = max sum_k abs(g_k),

    with eps the resolution of the coarsest floating dtype among the variables and what layers
    compute in, on PyTorch float32 at best. Rounding explains a difference up to sqrt(eps), half the
    digits: 3e-4 in float32, 1e-8 in float64, 3e-2 in float16, 9e-2 in bfloat16.
    So coarse, bfloat16 may hide a `BatchNormalization`: verify such a model in float32.
    The sum of magnitudes is what rounding is relative to where gradients cancel. The second term is
    for gradients that are zero but for rounding, such as that of a bias before a normalization.

    Reasons are found, not guessed. A layer is named if in this batch it drew such numbers or
    assigned its state, or if samples alone come out of it as other numbers than with the rest of
    the batch. A loss is named if its micro-batches make another number than the batch, with neither
    dropout nor batch statistics.

    The model is left as it was. One that is not built yet is built, without its optimizer. On JAX
    it must not be in the middle of `fit`.

    Args:
        model: A compiled Keras model; whether `microbatch` is installed makes no difference.
        batch: What `fit` is given: ``(x, y)``, ``(x, y, sample_weight)``, or x alone. Each may be
            nested, of NumPy arrays or tensors with one leading axis, the samples.
        size: Integer >= 1; samples per micro-batch.

    Returns:
        A `Verification`. Print it.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: The model is not compiled, overrides `train_step`, or is trained by several
            replicas; `size` is no integer >= 1, or not smaller than the batch without `padding`;
            `batch` is empty, a data set, or without targets, or its arrays have leading axes of
            several sizes.

    Example:
        >>> model.compile(optimizer="adam", loss="mse")
        >>> print(ranger.verify(model, (x[:256], y[:256]), size=32))
    """
    require_comparable(model, "verify")
    size = arguments.count("size", size, "It is the number of samples of a micro-batch.")
    with arrays.kept(model):  # PyTorch's loader draws a seed
        data = converted(batch)
    samples = samples_of_arrays(data)
    require_targets(model, data)
    loss, padding = _options_of(model)
    if size >= samples and padding is None:
        raise ValueError(
            f"size must be smaller than the batch, or nothing is split: got size={size} and "
            f"{samples} samples. Give a smaller size, or more samples."
        )
    with warnings.catch_warnings():
        # They say what the reasons say.
        warnings.filterwarnings("ignore", category=UserWarning, module="tensorflow_ranger")
        build_without_optimizer(model, data)
        tolerance = math.sqrt(resolution_of(model))
        whole, parts = run_both(model, data, size, True, loss, padding)
        differences = differences_of(whole, parts, tolerance)
        state = state_differences_of(whole, parts, tolerance)
        notes = tuple(loss_notes(parts))
        found = Verification(differences, tolerance, (), size, samples, state, notes)
        if found.exact:
            return found
        reasons = training_reasons(model, data, whole, differences)
        reasons += state_reasons(state, parts, tolerance, bool(reasons))
        unknown = parts.dry_run.unknown
        whole, parts = run_both(model, data, size, False, loss, padding)
        is_also_in_inference = is_over(differences_of(whole, parts, tolerance), tolerance)
        if is_also_in_inference or not reasons:
            training = not is_also_in_inference
            more = crossing_reasons(model, data, size, training, tolerance)
            if padding is not None and not more:
                more = [inertness_reason(model, data, padding, (whole, parts), tolerance)]
            more = more or loss_reasons(parts, data, size, tolerance)
            reasons += more or ([] if unknown else [_UNEXPLAINED])
    return dataclasses.replace(found, reasons=tuple(dict.fromkeys(reasons)))


_UNEXPLAINED = (
    "Neither layers nor losses say why. Random numbers drawn outside Keras would explain it; "
    "otherwise please report the model."
)


def _options_of(model):
    """Return the ``loss`` and the `Padding` that `microbatch` was given for `model`, or Nones."""
    installed = TrainFunction.of(model)
    if installed is None:
        return None, None
    padding = installed.maker.padding
    return installed.maker.loss, None if padding is None else Padding(
        model, padding, is_compiled=False
    )


def build_without_optimizer(model, data):
    """Build `model`, its losses and its metrics for a batch ``(x, y, sample_weight)``."""
    # Which weights the optimizer is built for the user may still change.
    optimizer, is_built = model.optimizer, model.optimizer.built
    optimizer.built = True
    try:
        keras_internals.build(model, data)
    finally:
        optimizer.built = is_built


def require_comparable(model, function):
    """Check that `function` can compare how `model` trains, whole and in micro-batches.

    Raises:
        TypeError: It is not a Keras model.
        ValueError: It is not compiled, overrides `train_step`, or is trained by several replicas.
    """
    require_model(model, function)
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"{function} needs a model that knows its loss and optimizer: got one that is not "
            "compiled. Call model.compile first."
        )
    if replicas.has_several(model.variables):
        raise ValueError(
            f"{function} compares on one replica: got a model that several train. Build the same "
            f"model without a distribution, and give that to {function}."
        )
    if overridden_step(model) is not None:
        raise ValueError(
            f"{function} runs Keras' own train_step, and {type(model).__name__} overrides it. "
            "Compare its weights after an update instead."
        )


def converted(batch):
    """Return ``(x, y, sample_weight)`` of tensors, converted as `fit` does."""
    data = keras.utils.unpack_x_y_sample_weight(batch)
    samples = samples_of_arrays(data)
    data = keras_internals.as_fit_converts(*data, samples)
    return keras.tree.map_structure(_tensor, data)


def _tensor(leaf):
    return ops.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf


def samples_of_arrays(data):
    """Return the number of samples of a batch.

    Raises:
        ValueError: The batch is empty, or its arrays have leading axes of several sizes.
    """
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    for leaf in leaves:
        if not hasattr(leaf, "shape") or len(leaf.shape) == 0:
            got, remedy = type(leaf).__name__, "Make arrays of lists by numpy.asarray."
            if hasattr(leaf, "shape"):
                got, remedy = f"a scalar {got}", "Give each sample a row."
            elif hasattr(leaf, "__iter__") and not isinstance(leaf, str):
                remedy = "Give one batch of it: next(iter(data))."
            raise ValueError(
                f"batch must hold arrays with a leading axis, the samples: got {got}. {remedy}"
            )
    shapes = [tuple(leaf.shape) for leaf in leaves]
    counts = {int(shape[0]) for shape in shapes}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            "The arrays of batch must have leading axes of one size, the samples, and at least one "
            f"sample: got shapes {shapes}. Give x and y with a row for each sample."
        )
    return counts.pop()
