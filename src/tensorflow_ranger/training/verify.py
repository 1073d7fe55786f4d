"""verify: whether micro-batches give the gradient of the whole batch, and if not, why."""

import contextlib
import dataclasses
import functools
import math
import numbers
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tensorflow_ranger import backend
from tensorflow_ranger.accumulation.fused import BatchBuffer
from tensorflow_ranger.backend import steps
from tensorflow_ranger.training.loss_shares import LossShares
from tensorflow_ranger.training.passes import Passes

# What numbers of each dtype are apart at 1.
_EPSILONS = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 2**-23, "float64": 2**-52}
_ROWS = 20  # variables in the table


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found; printing it gives a table and a verdict.

    Args:
        differences: For each variable's path, the largest difference between an element of the two
            gradients, relative to the variable's scale.
        tolerance: The largest difference that rounding explains.
        reasons: Sentences that say why the gradients differ; empty if they are the same.
        size: Samples per micro-batch.
        samples: Samples of the batch.
    """

    differences: Mapping[str, float]
    tolerance: float
    reasons: tuple[str, ...]
    size: int
    samples: int

    @property
    def exact(self):
        """Whether no difference is larger than rounding explains."""
        return all(difference <= self.tolerance for difference in self.differences.values())

    def __str__(self):
        # A NaN is the largest.
        ordered = sorted(self.differences.items(), key=lambda item: -np.nan_to_num(item[1], nan=9))
        width = max([len("variable"), *(len(path) for path, _ in ordered[:_ROWS])])
        lines = [f"{'variable':<{width}}  difference"]
        lines += [f"{path:<{width}}  {difference:>10.1e}" for path, difference in ordered[:_ROWS]]
        if len(ordered) > _ROWS:
            lines.append(f"... and {len(ordered) - _ROWS} variables that differ less")
        lines.append(
            f"{'Same to rounding' if self.exact else 'Differs'}: the gradient of {self.samples} "
            f"samples whole and {self.size} at a time. Rounding explains {self.tolerance:.1e}."
        )
        return "\n".join([*lines, *(f"- {reason}" for reason in self.reasons)])


def verify(model, batch, size: int):
    """Compare a batch's gradient with the sum of its micro-batches', and say why they differ.

    `microbatch` is exact but for what looks across the samples of a batch or draws at random. This
    function runs `batch` once whole, by Keras' own loss, and once `size` samples at a time, as
    `microbatch` does, from the same weights and seeds. The batch must fit the memory, so take a
    small one. An element of a variable's gradient G, the sum of micro-batches' shares g_k, is
    compared relative to the variable's scale,

        max abs(G - sum_k g_k) / max(s_v, min(1, 32 sqrt(eps)) max_v s_v),
        s_v = max sum_k abs(g_k),

    with eps the resolution of the coarsest floating dtype among the variables and what layers
    compute in, on PyTorch float32 at best. Rounding explains a difference up to sqrt(eps), half the
    digits: 3e-4 in float32, 1e-8 in float64, 3e-2 in float16, 9e-2 in bfloat16.
    So coarse, bfloat16 may hide a `BatchNormalization`: verify such a model in float32.
    The sum of magnitudes is what rounding is relative to where gradients cancel. The second term is
    for gradients that are zero but for rounding, such as that of a bias before a normalization.

    Reasons are found, not guessed. A layer is named if in this batch it drew random numbers or
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
        ValueError: The model is not compiled or overrides `train_step`; `size` is no integer >= 1;
            `batch` is empty, or its arrays have leading axes of several sizes.

    Example:
        >>> model.compile(optimizer="adam", loss="mse")
        >>> print(ranger.verify(model, (x[:256], y[:256]), size=32))
    """
    _check(model, size)
    data = _data(batch)
    samples, size = _samples(data), int(size)
    with warnings.catch_warnings():
        # They say what the reasons say.
        warnings.filterwarnings("ignore", category=UserWarning, module="tensorflow_ranger")
        _build(model, data)
        tolerance = _tolerance(model)
        whole, parts = _run_both(model, data, samples, size, training=True)
        differences = _differences(whole, parts, tolerance)
        found = Verification(differences, tolerance, (), size, samples)
        if found.exact:
            return found
        reasons = _training_reasons(model, data, whole, differences)
        whole, parts = _run_both(model, data, samples, size, training=False)
        is_also_in_inference = _is_over(_differences(whole, parts, tolerance), tolerance)
        if is_also_in_inference:
            reasons += (
                _crossing_reasons(model, data, size, False, tolerance)
                or _loss_reasons(model, whole, parts, tolerance)
                or [_UNEXPLAINED]
            )
        elif not reasons:
            reasons += _crossing_reasons(model, data, size, True, tolerance) or [_UNEXPLAINED]
    return dataclasses.replace(found, reasons=tuple(reasons))


_UNEXPLAINED = (
    "Neither layers nor losses say why. Random numbers drawn outside Keras would explain it; "
    "otherwise please report the model."
)


class _Trial(Passes):
    """The passes of a batch that end in a record of it, and assign nothing.

    Args:
        model: A compiled and built Keras model.
        is_whole: Whether the batch is one micro-batch, with the loss that Keras computes.
        training: What the model is called with.
    """

    def __init__(self, model, is_whole, training):
        super().__init__(model, _Recorder(model.optimizer, model.trainable_variables))
        self._training = training
        if is_whole:
            self.shares = _KerasLoss(model)

    def finish(self, totals, carry, rows):
        return {
            "totals": totals,
            "seeds": carry["seeds"],
            "loss": carry["loss"],
            "parts": carry["parts"],
        }

    def assigned(self):
        """Return the variables of floats that layers assigned, seeds apart."""
        return [v for v in self._averaged if keras.backend.is_float_dtype(v.dtype)]

    def _call(self, x):
        if self.model._call_has_training_arg:
            return self.model(x, training=self._training)
        return self.model(x)

    def _update_metrics(self, x, y, y_pred, sample_weight):
        return {}


class _Recorder(BatchBuffer):
    """Holds of each variable the sum of the gradients, and the sum of their magnitudes."""

    def open(self, index):
        zeros = super().open(index)
        return ops.stack([zeros, zeros])

    def first(self, index, gradient, factor):
        return self.add(index, self.open(index), gradient, factor)

    def add(self, index, total, gradient, factor):
        gradient = super().add(index, super().open(index), gradient, factor)
        both = ops.stack([gradient, ops.abs(gradient)])
        return ops.maximum(total, both) if self._overwritten[index] else total + both


class _KerasLoss(LossShares):
    """The loss as `fit` without `microbatch` computes it: what the shares are to add up to."""

    def of(self, x, y, y_pred, sample_weight, samples, whole):
        # Keras on torch multiplies the sample weights by the mask in place.
        copy = _copy(sample_weight)
        _, logged, parts = super().of(x, y, y_pred, copy, samples, whole)
        loss = self._model._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )
        return ops.sum(loss), logged, parts


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a run of the batch left, as NumPy arrays.

    Args:
        trial: The passes that ran.
        totals: For each trainable variable the two sums of `_Recorder`.
        seeds: The seeds' values after the batch.
        loss: The batch's loss.
        parts: The compiled losses' shares of it.
    """

    trial: _Trial
    totals: list
    seeds: list
    loss: float
    parts: list


def _run_both(model, data, samples, size, training):
    return (
        _run(_Trial(model, True, training), data, samples),
        _run(_Trial(model, False, training), data, size),
    )


def _run(trial, data, size):
    model, state, compiled = trial.model, None, None
    if keras.config.backend() == "jax":
        # The step is given its arrays for good. Of the optimizer it needs none.
        groups = (model.trainable_variables, model.non_trainable_variables, (), trial.metrics)
        state = tuple([ops.copy(v.value) for v in group] for group in groups)
        compiled = bool(model.jit_compile and not model.run_eagerly)
    with _torch_kept(model):
        logs, _ = steps.Step(trial, "host", compiled).run(state, _copy(data), size, None)
    totals = [
        # PyTorch has no gradient for what the loss doesn't depend on.
        np.zeros((2, *weight.shape)) if total is None else ops.convert_to_numpy(total)
        for weight, total in zip(trial.weights, logs["totals"], strict=True)
    ]
    return _Record(
        trial,
        [total.astype("float64") for total in totals],
        [ops.convert_to_numpy(seed) for seed in logs["seeds"]],
        float(ops.convert_to_numpy(logs["loss"])),
        [float(ops.convert_to_numpy(part)) for part in logs["parts"]],
    )


def _differences(whole, parts, tolerance):
    """Return the largest relative difference of each variable, by its path."""
    scales = [
        max(_largest(one[1]), _largest(other[1]))
        for one, other in zip(whole.totals, parts.totals, strict=True)
    ]
    largest = max(filter(math.isfinite, scales), default=0.0)
    floor = min(1.0, 32 * tolerance) * largest
    differences = {}
    for weight, scale, one, other in zip(
        whole.trial.weights, scales, whole.totals, parts.totals, strict=True
    ):
        with np.errstate(invalid="ignore"):  # inf - inf
            difference = _largest(one[0] - other[0])
        relative = difference and difference / max(scale, floor)
        # Layers of one name share a path.
        differences[weight.path] = float(np.maximum(differences.get(weight.path, 0.0), relative))
    return differences


def _largest(array):
    return float(np.max(np.abs(array), initial=0.0))


def _is_over(differences, tolerance):
    return not all(difference <= tolerance for difference in differences.values())


def _tolerance(model):
    dtypes = {keras.backend.standardize_dtype(v.dtype) for v in model.trainable_variables}
    dtypes |= {layer.compute_dtype for layer in model._flatten_layers()}
    if keras.config.backend() == "torch":  # Keras rounds some operations through float32 there
        dtypes.add("float32")
    return math.sqrt(max([_EPSILONS[d] for d in dtypes if d in _EPSILONS], default=2**-23))


def _training_reasons(model, data, whole, differences):
    """Return which layers drew random numbers or assigned state."""
    reasons = [
        f"The gradient of {path} is not finite."
        for path, difference in differences.items()
        if not math.isfinite(difference)
    ]
    before = [ops.convert_to_numpy(v.value) for v in whole.trial.seeds]
    drawn = [
        variable
        for variable, old, new in zip(whole.trial.seeds, before, whole.seeds, strict=True)
        if not np.array_equal(old, new)
    ]
    drawers = _owners(model, drawn)
    if keras.config.backend() == "torch":
        drawers += [call.layer for call in _calls(model, data[0], True) if call.drew]
    reasons += [
        f"{_name(layer)} drew random numbers, and draws others for each micro-batch."
        for layer in _once(drawers)
    ]
    for layer in _owners(model, whole.trial.assigned()):
        if isinstance(layer, keras.layers.BatchNormalization):
            reasons.append(
                f"{_name(layer)} normalized each micro-batch by the micro-batch's own mean and "
                "variance."
            )
        else:
            reasons.append(
                f"{_name(layer)} keeps state of its own, which each micro-batch assigned."
            )
    return reasons


def _crossing_reasons(model, data, size, training, tolerance):
    """Return which layer made of the last micro-batch's samples what it does not in the batch."""
    x = data[0]
    last = _samples(data) % size or size
    alone = keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[-last:], x)
    for one, other in zip(_calls(model, x, training), _calls(model, alone, training), strict=False):
        if _same(one.inputs, other.inputs, tolerance) and not _same(
            one.outputs, other.outputs, tolerance
        ):
            return [
                f"{_name(one.layer)} looks across the batch: its output for a sample depends on "
                "the other samples."
            ]
    return []


def _loss_reasons(model, whole, parts, tolerance):
    """Return which losses of the whole batch are not the sum of their shares."""

    def same(one, other, scale):
        return abs(one - other) <= tolerance * scale

    if type(model).compute_loss is not keras.Model.compute_loss:
        if same(whole.loss, parts.loss, max(abs(whole.loss), abs(parts.loss))):
            return []
        return [f"{type(model).__name__}.compute_loss {_not_a_mean(whole.loss, parts.loss)}"]
    reasons, added, added_in_parts = [], whole.loss, parts.loss
    losses = whole.trial.shares.losses
    for record, one, other in zip(losses, whole.parts, parts.parts, strict=True):
        weight = 1.0 if record.loss_weights is None else float(record.loss_weights)
        added, added_in_parts = added - weight * one, added_in_parts - weight * other
        if not same(one, other, max(abs(one), abs(other))):
            output = f" of output {record.name!r}" if len(losses) > 1 else ""
            reasons.append(f"The loss {record.loss.name!r}{output} {_not_a_mean(one, other)}")
    if not same(added, added_in_parts, max(abs(whole.loss), abs(parts.loss))):
        reasons.append(f"A loss that a layer adds {_not_a_mean(added, added_in_parts)}")
    return reasons


def _not_a_mean(whole, parts):
    return (
        f"is not a mean over samples: {whole:.6g} for the batch, {parts:.6g} as the mean of its "
        "micro-batches. Return one number per sample."
    )


def _name(layer):
    return f"{type(layer).__name__} {(layer.path or layer.name)!r}"


def _owners(model, variables):
    """Return the innermost layers that own one of the variables, each once."""
    layers = model._flatten_layers()[::-1]  # inner layers before those around them
    holders = [
        [layer for layer in layers if any(v is variable for v in layer.variables)]
        for variable in variables
    ]
    return _once(min(found, key=lambda layer: len(layer.variables)) for found in holders)


def _once(layers):
    return list({id(layer): layer for layer in layers}.values())


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of a layer.

    Args:
        layer: The layer.
        inputs: Its arguments' arrays; None for one that a loop or a graph keeps to itself.
        outputs: Its outputs' arrays.
        drew: Whether it drew from PyTorch's own generators, as `Dropout` without a seed does.
    """

    layer: Any
    inputs: list
    outputs: list
    drew: bool


def _calls(model, x, training):
    """Return the calls of a forward pass, those within a layer before the layer's own."""
    calls = []

    def watched(layer):
        call = layer.call

        @functools.wraps(call)
        def watch(*args, **kwargs):
            states, within = _torch_random_states(), len(calls)
            outputs = call(*args, **kwargs)
            drew = states != _torch_random_states() and not any(c.drew for c in calls[within:])
            calls.append(_Call(layer, _arrays((args, kwargs)), _arrays(outputs), drew))
            return outputs

        return watch

    layers = model._flatten_layers()
    own = [vars(layer).get("call") for layer in layers]
    with _torch_kept(model), keras.StatelessScope(collect_losses=True):
        # Past Keras' __setattr__, which keeps record of attributes.
        vars_of = [(vars(layer), watched(layer)) for layer in layers]
        for attributes, watch in vars_of:
            attributes["call"] = watch
        try:
            model(x, training=training) if model._call_has_training_arg else model(x)
        finally:
            for (attributes, _), call in zip(vars_of, own, strict=True):
                del attributes["call"]
                if call is not None:
                    attributes["call"] = call
    return calls


def _arrays(tensors):
    return [_array(leaf) for leaf in keras.tree.flatten(tensors) if ops.is_tensor(leaf)]


def _array(tensor):
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":  # NumPy has none
        tensor = ops.cast(tensor, "float32")
    array = backend.static_value(ops.stop_gradient(tensor))
    return None if array is None or array.dtype.kind not in "fiub" else array.astype("float64")


def _same(whole, last, tolerance):
    """Return whether arrays of a batch end with those of its last samples."""
    for one, other in zip(whole, last, strict=False):
        if one is None or other is None or one.ndim == 0:
            continue
        one = one[-len(other) :]
        if one.shape != other.shape:  # samples are not its first axis
            continue
        if not np.allclose(one, other, rtol=0, atol=tolerance * _largest(one), equal_nan=True):
            return False
    return True


def _build(model, data):
    # As `fit` would, but the optimizer: its slots are not needed, and which weights it is built
    # for the user may still change.
    optimizer, is_built = model.optimizer, model.optimizer.built
    optimizer.built = True
    try:
        model._symbolic_build(data_batch=data)
    finally:
        optimizer.built = is_built


@contextlib.contextmanager
def _torch_kept(model):
    """Leave PyTorch's generators and the parameters' gradients as they were."""
    if keras.config.backend() != "torch":
        yield
        return
    torch = sys.modules["torch"]
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


def _torch_random_states():
    if keras.config.backend() != "torch":
        return []
    torch = sys.modules["torch"]
    states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [state.numpy().tobytes() for state in (torch.get_rng_state(), *states)]


def _check(model, size):
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"verify needs a keras.Model: got {type(model).__name__}. For a loop of your own "
            "compare the gradients of two sizes of accumulate_gradients."
        )
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            "verify needs a model that knows its loss and optimizer: got one that is not compiled. "
            "Call model.compile first."
        )
    if not type(model).train_step.__module__.startswith("keras."):
        raise ValueError(
            f"verify runs Keras' own train_step, and {type(model).__name__} overrides it. Compare "
            "its weights after an update instead."
        )
    if not isinstance(size, numbers.Integral) or isinstance(size, bool) or size < 1:
        raise ValueError(
            f"size must be an integer >= 1: got {size!r}. It is the number of samples of a "
            "micro-batch."
        )


def _data(batch):
    """Return ``(x, y, sample_weight)`` of tensors, converted as `fit` does."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    if keras.tree.is_nested(y) and not keras.tree.is_nested(sample_weight):
        # One array, or None, stands for all outputs.
        weight = sample_weight
        sample_weight = None if weight is None else keras.tree.map_structure(lambda _: weight, y)
    return keras.tree.map_structure(_tensor, (x, y, sample_weight))


def _tensor(leaf):
    if leaf is None:
        return None
    if not hasattr(leaf, "shape") or len(leaf.shape) == 0:
        raise ValueError(
            "The arrays of batch must have a leading axis, the samples: got "
            f"{type(leaf).__name__} of shape {getattr(leaf, 'shape', None)}."
        )
    if isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.floating):
        return ops.convert_to_tensor(leaf, dtype=keras.config.floatx())
    return ops.convert_to_tensor(leaf)


def _samples(data):
    shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(data) if leaf is not None]
    counts = {int(shape[0]) for shape in shapes}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            "The arrays of batch must have leading axes of one size, the samples, and at least one "
            f"sample: got shapes {shapes}."
        )
    return counts.pop()


def _copy(data):
    return keras.tree.map_structure(lambda leaf: None if leaf is None else ops.copy(leaf), data)
