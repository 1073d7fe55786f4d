"""check_exact: fails where micro-batches do not train a model as the whole batch does."""

import math
import numbers
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.backend.batches import count
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.checks.calls import called_as
from tensorflow_ranger.training.examination import resolution, resolution_of
from tensorflow_ranger.training.microbatch import microbatch
from tensorflow_ranger.training.train_function import TrainFunction
from tensorflow_ranger.training.verification.dry_run import DryRun, largest, run
from tensorflow_ranger.training.verification.undone_training import (
    training_undone,
    untracked_state,
)
from tensorflow_ranger.training.verification.verify import (
    build_without_optimizer,
    converted,
    require_comparable,
    samples_of_arrays,
    verify,
)

_UPDATES = 3
_ROWS = 20  # in the table
_COMPARED = ("gradient", "weights", "state", "optimizer")


@called_as("check_exact(model, (x, y))")
def check_exact(
    model: keras.Model,
    batch: Any,
    sizes: Iterable[int] | None = None,
    rtol: float | None = None,
) -> None:
    """Raise `AssertionError` if micro-batches do not train `model` as the whole batch does.

    Call it in your own test suite. For each size it compares

    - the gradient of each variable, as `verify` does, relative to the gradient's scale;
    - weights, the optimizer's state, and the state that layers assign, after three updates by
      `fit` on the whole batch and three in micro-batches. With the values w after micro-batches,
      u after whole batches and z before, a variable's difference is

          max(0, norm(w - u) - 3 eps norm(u)) / norm(u - z),

      with eps the resolution of the variable's dtype: three roundings of the value itself are no
      difference. Integers, such as seeds, must be equal.

    The error lists for each variable its largest difference and the size that had it, and says
    which layers or losses are the cause, as `verify` finds it. A weight whose gradient is zero but
    for rounding, such as the bias of an attention's keys, is left out of the second comparison,
    with its optimizer state: Adam and its kin make updates of full length of such a gradient.

    On PyTorch, what a model draws by `keras.random` is not what plain `fit` draws; there the whole
    batch of such a model is one micro-batch.

    If the model trains with `microbatch`, its ``loss``, ``accumulator_dtype``, ``padding`` and
    ``rematerialize`` are those that are checked. Model, optimizer, metrics and seeds are left as
    they were; a model that is not built yet is built, without its optimizer. On JAX the model must
    not be in the middle of `fit`. The batch must fit the memory, so take a small one.

    Args:
        model: A compiled Keras model.
        batch: What `fit` is given: ``(x, y)``, ``(x, y, sample_weight)``, or x alone. Each may be
            nested, of NumPy arrays or tensors with one leading axis, the samples.
        sizes: Integers >= 1; samples per micro-batch, each checked in turn. None takes 1, half the
            batch, and the smallest size that leaves a remainder.
        rtol: Number > 0; the largest difference that passes. None takes the square root of the
            resolution of the coarsest dtype that the model computes in: 3e-4 in float32, on PyTorch
            in float64, too, 1e-8 in float64 elsewhere, 3e-2 in float16, 9e-2 in bfloat16. All are
            well below one update, whose difference is 1.

    Raises:
        AssertionError: A difference is larger than `rtol`.
        TypeError: `model` is not a Keras model.
        ValueError: The model is not compiled, overrides `train_step`, or is trained by several
            replicas; an argument is out of range; `batch` is empty, or its arrays have leading axes
            of several sizes.

    Example:
        >>> def test_my_model_trains_exactly():
        ...     model = my_model()
        ...     ranger.testing.check_exact(model, (x[:16], y[:16]))
    """
    __tracebackhide__ = True
    require_comparable(model, "check_exact")
    with arrays.kept(model):  # PyTorch's loader draws a seed
        data = converted(batch)
    samples = samples_of_arrays(data)
    sizes = _sizes(sizes, samples)
    with warnings.catch_warnings():
        # They say what the reasons say.
        warnings.filterwarnings("ignore", category=UserWarning, module="tensorflow_ranger")
        build_without_optimizer(model, data)
        rtol = _rtol(rtol, model)
        options = _options_of(model)
        with training_undone(model):
            microbatch(model, samples if _draws_other_numbers(model) else None, **options)
            compared = _Compared(model, data)
            whole = _trained(model, batch, samples)
        found, reasons = [], []
        for size in sizes:
            with training_undone(model):
                microbatch(model, size, **options)
                verification = verify(model, batch, size)
                parts = _trained(model, batch, samples)
            here = [_Row(size, "gradient", *pair) for pair in verification.differences.items()]
            here += compared.rows(size, whole, parts)
            here = [row for row in here if not row.difference <= rtol]
            found += here
            if here:
                reasons += verification.reasons or [_UNEXPLAINED]
    if found:
        raise AssertionError(_message(model, samples, rtol, found, dict.fromkeys(reasons)))


_UNEXPLAINED = (
    "No reason was found: the gradients agree as far as rounding allows. Check with "
    "keras.optimizers.SGD: an optimizer that divides a gradient by its own magnitude, such as "
    "Adam, makes an update of full length of an element that is zero but for rounding."
)


class _Row(NamedTuple):
    size: int
    compared: str
    path: str
    difference: float


class _Values(NamedTuple):
    compared: str
    path: str
    dtype: str
    before: np.ndarray
    after: np.ndarray


class _Compared:
    """Says how far two runs of a model are apart, but for weights whose gradient is rounding."""

    def __init__(self, model, data):
        totals = run(DryRun(model, True, True), data, count(data)).totals
        scales = [largest(magnitudes) for _, magnitudes in totals]
        least = math.sqrt(resolution_of(model)) * max(scales, default=0.0)
        weights = zip(model.trainable_variables, scales, strict=True)
        self._left_out = [weight.path for weight, scale in weights if scale <= least]

    def rows(self, size, whole, parts):
        """Return a `_Row` for each variable that is compared."""
        return [
            _Row(size, one.compared, one.path, _difference(one, other))
            for one, other in zip(whole, parts, strict=True)
            if not self._is_left_out(one)
        ]

    def _is_left_out(self, values):
        if values.compared == "optimizer":  # Keras names slots by the weight's path
            return any(path.replace("/", "_") in values.path for path in self._left_out)
        return values.path in self._left_out


def _draws_other_numbers(model):
    return keras.config.backend() == "torch" and bool(keras_internals.seeds_of(model))


def _trained(model, batch, samples):
    """Return the `_Values` of all variables, before and after some updates."""
    model.optimizer.build(model.trainable_variables)
    groups = (
        model.trainable_variables,
        [*model.non_trainable_variables, *untracked_state(model)],
        model.optimizer.variables,
    )
    named = [(name, v) for name, group in zip(_COMPARED[1:], groups, strict=True) for v in group]
    before = [_array(variable) for _, variable in named]
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    settings = {"batch_size": samples, "epochs": _UPDATES, "shuffle": False, "verbose": 0}
    model.fit(x, y, sample_weight=sample_weight, **settings)
    return [
        _Values(name, v.path, keras.backend.standardize_dtype(v.dtype), old, _array(v))
        for (name, v), old in zip(named, before, strict=True)
    ]


def _array(variable):
    return np.array(ops.convert_to_numpy(variable.value))


def _difference(whole, parts):
    """Return how far apart the values of a variable end, relative to how far it moved."""
    if not keras.backend.is_float_dtype(whole.dtype):
        return 0.0 if np.array_equal(whole.after, parts.after) else math.inf
    before, after, other = (
        array.astype("float64") for array in (whole.before, whole.after, parts.after)
    )
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.linalg.norm(other - after)
        apart -= _UPDATES * resolution(whole.dtype) * np.linalg.norm(after)
        moved = np.linalg.norm(after - before)
    if apart <= 0:
        return 0.0
    return float(apart / moved) if moved else math.inf


def _sizes(sizes, samples):
    if isinstance(sizes, numbers.Number | str):
        raise ValueError(f"sizes must hold integers: got {sizes!r}. Give [{sizes!r}].")
    if sizes is None:
        uneven = next(size for size in range(2, samples + 2) if samples % size)
        return sorted({1, max(1, samples // 2), min(uneven, max(1, samples - 1))})
    sizes = [
        arguments.count("sizes", size, "It holds numbers of samples of a micro-batch.")
        for size in sizes
    ]
    if not sizes:
        raise ValueError(
            "sizes must hold at least one size of a micro-batch: got none. Leave it out to check "
            "three."
        )
    return sizes


def _rtol(rtol, model):
    if rtol is None:
        return math.sqrt(resolution_of(model))
    if not isinstance(rtol, numbers.Real) or not 0 < float(rtol) < math.inf:
        raise ValueError(
            f"rtol must be a number > 0: got {rtol!r}. It is the largest relative difference that "
            "passes; leave it out to take what rounding explains."
        )
    return float(rtol)


def _options_of(model):
    """Return the options that `microbatch` was given for `model`."""
    installed = TrainFunction.of(model)
    return {} if installed is None else installed.maker.options


def _message(model, samples, rtol, rows, reasons):
    # Causes before what follows from them; a NaN is the largest.
    order = {compared: place for place, compared in enumerate(_COMPARED)}
    rows = sorted(
        rows, key=lambda row: (order[row.compared], -np.nan_to_num(row.difference, nan=math.inf))
    )
    worst = {}
    for row in rows:
        worst.setdefault((row.compared, row.path), row)
    shown = list(worst.values())[:_ROWS]
    width = max(len("variable"), *(len(row.path) for row in shown))
    lines = [
        f"Micro-batches do not train the model {model.name!r} as the whole batch of {samples} "
        f"samples does (rtol {rtol:.1e}).",
        f"compared   {'variable':<{width}}  difference  size",
    ]
    lines += [
        f"{row.compared:<9}  {row.path:<{width}}  {row.difference:>10.1e}  {row.size:>4}"
        for row in shown
    ]
    if len(worst) > len(shown):
        lines.append(f"... and {len(worst) - len(shown)} rows more")
    return "\n".join([*lines, *(f"- {reason}" for reason in reasons)])
