"""PyTorch: a loop in Python; gradients are added as the backward pass finds them."""

import contextlib
import functools

import keras
import torch
from torch._functorch import config as functorch

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.replicas.torch import count as replica_count
from tensorflow_ranger.backend.replicas.torch import own_draws
from tensorflow_ranger.backend.steps.samples import count, cut, split
from tensorflow_ranger.backend.torch import kept

KNOWS_MEMORY = False  # before a step has run


def default_loop(compiled):
    """Return "host": PyTorch always loops in Python."""
    return "host"


def rows(leaf):
    """Return the number of samples that `leaf` of a batch gives to a replica at most."""
    return leaf.shape[0] if len(leaf.shape) else -1


def trainer_overrides(model):
    """Return the methods of Keras' trainer that `model` needs others for, by their names: none."""
    return {}


def without_optionals(data):
    """Return `data` of an iterator with None for what is not there: it is so already."""
    return data


def make_step(passes, loop, compiled):
    """Return the step that runs `passes`."""
    return Step(passes, loop, compiled)


def current_values(variables):
    """Return pairs of the variables and the values an inner scope must be told: none."""
    return []


def add_gradients(share, passes, totals, factor):
    """Run ``share(None)`` backward; the hooks of `Step` add its gradients to the totals.

    Args:
        share: Function that returns ``(loss, aux)``; with several losses, loss is a list of them.
        passes: Object with `weights`, `losses` and `noise`, and what the hooks look at: `loss`,
            the place of the loss that runs backward, and `norms`.
        totals: The accumulator's totals, changed in place.
        factor: Known to the hooks.

    Returns:
        Tuple ``(totals, aux, square)``: square is the gradient's squared norm, or None unless
        `passes` measures noise.
    """
    loss, aux = share(None)
    passes.norms = []
    for passes.loss, each in enumerate(keras.tree.flatten(loss)):
        if passes.weights and (passes.losses == 1 or each.requires_grad):
            each.backward(retain_graph=passes.loss + 1 < passes.losses)
    square = None
    if passes.noise is not None:
        square = torch.stack(passes.norms).square().sum() if passes.norms else 0.0
    return totals, keras.tree.map_structure(_detached, aux), square


def filled(totals, empty, like):
    """Return the totals with ``empty(index)`` for None, and in a list which of them were none.

    Args:
        totals: List of tensors and Nones.
        empty: Function from an index to a total.
        like: Tensor of the dtype and device of the result.
    """
    present = like.new_tensor([float(total is not None) for total in totals])
    return [empty(i) if total is None else total for i, total in enumerate(totals)], [present]


def _norm(gradient):
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.linalg.vector_norm(values.float())


def _detached(tensor):
    if not isinstance(tensor, torch.Tensor) or not tensor.requires_grad:
        return tensor
    detached = tensor.detach()
    mask = keras_internals.get_mask(tensor)
    if mask is not None:
        keras_internals.set_mask(detached, mask)
    return detached


class Step:
    """Runs a batch: `run` returns the logs and None.

    A batch for which memory ran out goes on where it stopped when it is run again, in smaller
    micro-batches: totals may live in the optimizer's own momentum, so what was added stays added.

    Args:
        passes: The functions of the batch.
        loop: "host".
        compiled: Whether `torch.compile` compiles the model's forward and backward pass.
    """

    def __init__(self, passes, loop, compiled):
        self._passes = passes
        self._prepared = False
        self._unfinished = False
        self._batch = None
        self._context = contextlib.nullcontext
        if compiled:
            if passes.losses > 1:
                # A compiled backward pass gives up its buffers, and here it runs once per loss.
                # What is compiled and what it checks when it runs both depend on this.
                self._context = functools.partial(functorch.patch, donated_buffer=False)
            passes.call = torch.compile(passes.call)

    def run(self, state, data, size, rows):
        """Train on the batch `data`, `size` samples at a time.

        Args:
            state: None.
            data: Tuple ``(x, y, sample_weight)`` of the batch.
            size: Samples per micro-batch.
            rows: The batch's samples, or None where Keras' own graph would not know them.

        Returns:
            Tuple ``(logs, state)``.
        """
        if self._unfinished:
            # PyTorch keeps what the failed pass freed, and CUDA's libraries allocate beside it.
            torch.cuda.empty_cache()
        self._unfinished = True
        if not self._prepared:
            with torch.no_grad(), kept(self._passes.model):
                self._passes.prepare(cut(data, 0, size), count(data))
                # Replicas must decide alike.
                comparable = data if replica_count() == 1 else None
                self._passes.examine(self._passes.probe, comparable, size)
            self._prepared = True
        if self._batch is None or self._batch.data is not data:
            self._batch = _Batch(self._passes, data, size)
        elif self._passes.noise is not None:
            self._batch.miss_noise()
        with own_draws(), self._context():
            self._batch.run(size)
        batch = (data, self._batch.outputs) if self._passes.gathers else ()
        with torch.no_grad():
            logs = self._passes.finish(self._batch.totals, self._batch.carry, rows, *batch)
        self._batch = None
        self._unfinished = False
        return logs, None

    @property
    def is_settled(self):
        """Whether all is known that decides what the step computes."""
        return self._passes.is_settled

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self._passes.state.require_rows(samples)


class _Batch:
    """A batch on its way: what has been added to which totals."""

    def __init__(self, passes, data, size):
        self._passes = passes
        self.data = data
        self.totals = [None] * (len(passes.weights) * passes.losses)
        self.outputs = []
        self._start = self._end = 0
        # The sample up to which each weight has its gradient. Within a pass that failed some have.
        self._ends = [0] * len(self.totals)
        with torch.no_grad():
            factor, scale = passes.begin()
            self.carry = passes.carry()
            masses = None
            if passes.needs_masses:
                measured = [passes.measure(micro_batch) for micro_batch in split(data, size)]
                masses = [sum(values) for values in zip(*measured, strict=True)]
            samples, masses = passes.agreed(passes.count(data), masses)
            self._whole = passes.whole(samples, masses, factor, scale)

    def run(self, size):
        """Add the micro-batches that are left."""
        with self._hooks():
            while self._start < count(self.data):
                ends = [end for end in self._ends if end > self._start]
                self._end = min([self._start + size, count(self.data), *ends])
                micro_batch = cut(self.data, self._start, self._end - self._start)
                _, self.carry, output = self._passes.add(
                    self.totals, self.carry, micro_batch, self._whole
                )
                self.outputs.append(output)
                self._start = self._end

    def miss_noise(self):
        """Measure no noise: after a pass that failed, weights differ in their micro-batches."""
        self.carry["noise"][0] = torch.full_like(self.carry["noise"][0], float("nan"))

    @contextlib.contextmanager
    def _hooks(self):
        # While open, gradients move to the totals as soon as they are found.
        self._passes.model.zero_grad()
        handles = [
            weight.value.register_post_accumulate_grad_hook(self._mover(index))
            for index, weight in enumerate(self._passes.weights)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mover(self, index):
        passes = self._passes
        accumulator = passes.accumulator

        @torch.no_grad()
        def move(parameter):
            gradient, parameter.grad = parameter.grad, None
            place = passes.loss * len(passes.weights) + index
            if self._ends[place] >= self._end:
                return
            if passes.noise is not None:
                passes.norms.append(_norm(gradient))
            total, factor = self.totals[place], self._whole.factor
            if total is None:
                self.totals[place] = accumulator.first(place, gradient, factor)
            else:
                self.totals[place] = accumulator.add(place, total, gradient, factor)
            self._ends[place] = self._end

        return move
