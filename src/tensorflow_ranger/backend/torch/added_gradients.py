"""PyTorch: the gradients of a micro-batch, added to the sums of its batch as they are found."""

import contextlib
from typing import Any

import keras
import torch

from tensorflow_ranger.backend import keras_internals, row_updates
from tensorflow_ranger.backend.phases import Added
from tensorflow_ranger.backend.torch import replicas, row_lists

KEEPS_MASKS = True  # of outputs that a loss was computed of


def current_values(variables):
    """Return pairs of the variables and the values an inner scope must be told: none."""
    return []


def add_gradients(share, phases, sums, factor, inputs=None, weights=None):
    """Run ``share(None)`` backward, which adds its gradients to the sums.

    Args:
        share: Function that returns ``(loss, aux)``; with several losses, loss is a list of them.
        phases: `Phases`.
        sums: `Sums`, changed in place.
        factor: Known to the sums.
        inputs: List of tensors by which `share` is differentiated as well, or None. It takes them.
        weights: None: a module reads its own parameters.

    Returns:
        `Added`.
    """
    if inputs is None:
        with keras_internals.looking_up_by(row_lists.look_up):
            loss, aux = share(None)
        square, slopes = sums.run_backward(loss if isinstance(loss, list) else [loss]), []
    else:
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            loss, aux = share(None, inputs)
        square, slopes = None, sums.add_and_cut(keras.tree.flatten(loss), inputs)
    return Added(sums, _detached(aux), square, [True] * len(sums.values), slopes)


def filled(sums, empty, like):
    """Return the sums with ``empty(index)`` for None, and in a list which of them were none.

    Args:
        sums: List of tensors and Nones.
        empty: Function from an index to a sum.
        like: Tensor of the dtype and device of the result.
    """
    present = like.new_tensor([float(total is not None) for total in sums])
    return [empty(i) if total is None else total for i, total in enumerate(sums)], [present]


class Sums:
    """The sums of a batch's gradients, which hooks fill during backward passes.

    Args:
        phases: `Phases` of the batch.
        factor: Scalar that gradients are multiplied by, or None.
        before: The sums of the batch before, or None.
    """

    def __init__(self, phases, factor, before=None):
        self._phases = phases
        self._factor = factor
        #: Freed between the first forward and backward pass, as Keras frees gradients: the backward
        #: pass then finds memory in place, which the processor's allocator else returns and clears.
        self.before = before
        #: Of each sum a tensor, a list of lists of rows, or None where there was no gradient.
        self.values: list[Any] = [None] * (len(phases.weights) * phases.losses)
        keeps_rows = phases.accumulator.takes_rows and replicas.count() == 1
        self._stays_list = [
            keeps_rows and row_updates.leave_others(phases.model.optimizer, weight)
            for weight in phases.weights
        ]
        #: The sample that the present micro-batch ends at.
        self.end = 0
        #: The sample up to which each sum is complete: within a pass that failed they differ.
        self.ends = [0] * len(self.values)
        self._loss = 0
        self._norms = []

    def run_backward(self, losses):
        """Add the gradients of `losses`; return their squared norm if it is measured."""
        phases = self._phases
        self._norms, self.before = [], None
        for self._loss, loss in enumerate(losses):
            if phases.weights and (phases.losses == 1 or loss.requires_grad):
                loss.backward(retain_graph=self._loss + 1 < phases.losses)
        if not phases.measures_gradients:
            return None
        return torch.stack(self._norms).square().sum() if self._norms else 0.0

    def add_and_cut(self, losses, inputs):
        """Add the gradients of `losses` by the weights; return those by `inputs`, for each loss."""
        weights = [weight.value for weight in self._phases.weights]
        wanted = [place for place, weight in enumerate(weights) if weight.requires_grad]
        slopes = []
        for number, loss in enumerate(losses):
            found = [None] * (len(wanted) + len(inputs))
            if loss.requires_grad:
                found = torch.autograd.grad(
                    loss,
                    [*(weights[place] for place in wanted), *inputs],
                    retain_graph=number + 1 < len(losses),
                    allow_unused=True,
                )
            for place, gradient in zip(wanted, found, strict=False):
                if gradient is not None:
                    self._take(number * len(weights) + place, gradient)
            by_inputs = zip(inputs, found[len(wanted) :], strict=True)
            slopes.append([torch.zeros_like(i) if g is None else g for i, g in by_inputs])
        return slopes

    def _take(self, place, gradient):
        total, accumulator, gradients = self.values[place], self._phases.accumulator, [gradient]
        if total is None and gradient.is_sparse:
            stays_list = self._stays_list[place % len(self._stays_list)]
            total = [] if stays_list else accumulator.open(place)
        if isinstance(total, list):
            gradients = [*total, accumulator.first(place, gradient, self._factor)]
            if row_lists.are_fewer(gradients):
                self.values[place] = gradients
                return
            total = accumulator.open(place)
        if total is None:
            self.values[place] = accumulator.first(place, gradient, self._factor)
            return
        for each in gradients:
            total = accumulator.add(place, total, each, self._factor)
        self.values[place] = total

    def whole(self):
        """Return the sums of the batch."""
        return [row_lists.joined(v) if isinstance(v, list) else v for v in self.values]

    @contextlib.contextmanager
    def hooks(self):
        """While open, gradients move to the sums as soon as they are found."""
        self._phases.model.zero_grad()
        handles = [
            weight.value.register_post_accumulate_grad_hook(self._mover(index))
            for index, weight in enumerate(self._phases.weights)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mover(self, index):
        phases = self._phases

        def move(parameter):  # a backward pass records no gradients itself
            gradient, parameter.grad = parameter.grad, None
            place = self._loss * len(phases.weights) + index
            if self.ends[place] >= self.end:
                return
            if phases.measures_gradients:
                self._norms.append(_norm(gradient))
            self._take(place, gradient)
            self.ends[place] = self.end

        return move


def _norm(gradient):
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.linalg.vector_norm(values.float())


def _detached(value):
    """Return nested values with tensors that need no graph."""
    if isinstance(value, torch.Tensor):
        return _detached_leaf(value)
    if type(value) in (list, tuple):  # `keras.tree` takes several times as long
        return type(value)(map(_detached, value))
    return keras.tree.map_structure(_detached_leaf, value)


def _detached_leaf(tensor):
    if not isinstance(tensor, torch.Tensor) or not tensor.requires_grad:
        return tensor
    detached = tensor.detach()
    mask = keras_internals.get_mask(tensor)
    if mask is not None:
        keras_internals.set_mask(detached, mask)
    return detached
