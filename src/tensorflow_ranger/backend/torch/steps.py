"""PyTorch: a loop in Python; gradients are added as the backward pass finds them."""

import contextlib
import functools

import keras
import torch
from torch._functorch import config as functorch

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.batches import count, cut, joined_outputs
from tensorflow_ranger.backend.phases import Added, BatchPart, BatchTotals, Phases, Slopes
from tensorflow_ranger.backend.torch.arrays import foreign_state, kept
from tensorflow_ranger.backend.torch.loops import fold
from tensorflow_ranger.backend.torch.replicas import count as replica_count
from tensorflow_ranger.backend.torch.replicas import index

KNOWS_MEMORY = False  # before a step has run
ADDS_IN_PLACE = True  # a failed batch may have changed the momentum


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


def make_step(phases, loop, compiled):
    """Return the step that runs `phases`."""
    return Step(phases, compiled)


def current_values(variables):
    """Return pairs of the variables and the values an inner scope must be told: none."""
    return []


def add_gradients(share, phases, sums, factor, inputs=None, weights=None):
    """Run ``share(None)`` backward, which adds its gradients to the sums.

    Args:
        share: Function that returns ``(loss, aux)``; with several losses, loss is a list of them.
        phases: `Phases`.
        sums: `_Sums`, changed in place.
        factor: Known to the sums.
        inputs: List of tensors by which `share` is differentiated as well, or None. It takes them.
        weights: None: a module reads its own parameters.

    Returns:
        `Added`.
    """
    if inputs is None:
        loss, aux = share(None)
        square, slopes = sums.run_backward(keras.tree.flatten(loss)), []
    else:
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            loss, aux = share(None, inputs)
        square, slopes = None, sums.add_and_cut(keras.tree.flatten(loss), inputs)
    aux = keras.tree.map_structure(_detached, aux)
    return Added(sums, aux, square, [True] * len(sums.values), slopes)


def filled(sums, empty, like):
    """Return the sums with ``empty(index)`` for None, and in a list which of them were none.

    Args:
        sums: List of tensors and Nones.
        empty: Function from an index to a sum.
        like: Tensor of the dtype and device of the result.
    """
    present = like.new_tensor([float(total is not None) for total in sums])
    return [empty(i) if total is None else total for i, total in enumerate(sums)], [present]


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


@contextlib.contextmanager
def _own_draws():
    """Return a context in which layers without a seed draw from a generator of this replica's."""
    if replica_count() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))  # the same on all replicas, and another one each time
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed + index())
        yield


@contextlib.contextmanager
def _undone_on_error(model):
    """Return a context after whose failure generators and `model`'s buffers are as they were."""
    buffers = [(buffer, buffer.value.clone()) for buffer in foreign_state(model)]
    own = torch.get_rng_state()
    others = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    except BaseException:
        for buffer, value in buffers:
            buffer.assign(value)
        torch.set_rng_state(own)
        if others is not None:
            torch.cuda.set_rng_state_all(others)
        raise


class Step:
    """Runs a batch: `run` returns the logs and None.

    A batch for which memory ran out goes on where it stopped when it is run again, in smaller
    micro-batches: sums may live in the optimizer's own momentum, so what was added stays added.
    With a loss of the whole batch it begins again: its outputs must be those of one division.

    Args:
        phases: `Phases` of the batch.
        compiled: Whether `torch.compile` compiles the model's forward and backward pass.
    """

    def __init__(self, phases: Phases, compiled):
        self._phases = phases
        self._prepared = False
        self._unfinished = False
        self._batch = None
        self._context = contextlib.nullcontext
        if compiled:
            if phases.losses > 1:
                # A compiled backward pass gives up its buffers, and here it runs once per loss.
                # What is compiled and what it checks when it runs both depend on this.
                self._context = functools.partial(functorch.patch, donated_buffer=False)
            phases.compile_call(torch.compile)

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
        phases = self._phases
        if self._unfinished:
            # PyTorch keeps what the failed pass freed, and CUDA's libraries allocate beside it.
            torch.cuda.empty_cache()
        self._unfinished = True
        if not self._prepared:
            with torch.no_grad(), kept(phases.model):
                phases.prepare(cut(data, 0, size), count(data))
                # Replicas must decide alike.
                comparable = data if replica_count() == 1 else None
                phases.examine(phases.probe, comparable, size)
            self._prepared = True
        if self._batch is None or self._batch.data is not data or phases.cuts:
            self._batch = _Batch(phases, data, size)
        elif phases.measures_noise:
            self._batch.miss_noise()
        batch = self._batch
        undone = _undone_on_error(phases.model) if phases.cuts else contextlib.nullcontext()
        with undone, _own_draws(), self._context():
            batch.run(size)
        gathered = (data, batch.outputs) if phases.gathers else ()
        with torch.no_grad():
            logs = phases.finish(batch.sums.values, batch.state, rows, *gathered)
        self._batch = None
        self._unfinished = False
        return logs, None

    @property
    def is_settled(self):
        """Whether all is known that decides what the step computes."""
        return self._phases.is_settled

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self._phases.require_rows(samples)


class _Batch:
    """A batch on its way: what its micro-batches have handed on so far."""

    def __init__(self, phases, data, size):
        self._phases = phases
        self.data = data
        self.outputs = []
        self._start = 0
        self._slopes = None
        with torch.no_grad():
            factor, scale = phases.begin()
            self.sums = _Sums(phases, factor)
            masses = None
            if phases.needs_masses:
                masses = fold(self._add_masses, 0, data, size)
            samples, masses, (place,) = phases.agreed([(data, None)], masses)
            self.state = phases.initial()._replace(place=place)
            self._totals = BatchTotals(samples, masses, factor, scale)

    def _add_masses(self, masses, micro_batch):
        measured = self._phases.measure(micro_batch)
        return [a + b for a, b in zip(masses, measured, strict=True)] if masses else measured

    def run(self, size):
        """Add the micro-batches that are left."""
        if self._phases.cuts and (replica_count() > 1 or count(self.data) > size):
            self._slopes = self._cut_loss(size)
        with self.sums.hooks():
            fold(self._add, self.state, self.data, size, self._start, self.sums.ends)

    def _add(self, state, micro_batch):
        end = self._start + count(micro_batch)
        self.sums.end = end
        slopes = self._slopes
        if slopes is not None:
            slopes = Slopes(cut(slopes.rows, self._start, count(micro_batch)), slopes.added)
        _, self.state, output = self._phases.add(
            self.sums, state, micro_batch, self._totals, slopes=slopes
        )
        self.outputs.append(output)
        self._start = end
        return self.state

    @torch.no_grad()
    def _cut_loss(self, size):
        """Compute the batch's loss; return the `Slopes` of its rows."""
        phases, parts = self._phases, []

        def forward(state, micro_batch):
            state, part = phases.forward(state, micro_batch, self._totals.samples)
            parts.append(part)
            return state

        with kept(phases.model):  # generators: the second pass draws what this one draws
            ended = fold(forward, self.state, self.data, size)
        batch = [BatchPart(self.data, joined_outputs(parts), None)]
        _, self.state, (slopes,) = phases.differentiate(
            self.sums, self.state, ended, batch, self._totals
        )
        return slopes

    def miss_noise(self):
        """Measure no noise: after a pass that failed, weights differ in their micro-batches."""
        squares, micro_batches = self.state.noise
        squares = torch.full_like(squares, float("nan"))
        self.state = self.state._replace(noise=[squares, micro_batches])


class _Sums:
    """The sums of a batch's gradients, which hooks fill during backward passes.

    Args:
        phases: `Phases` of the batch.
        factor: Scalar that gradients are multiplied by, or None.
    """

    def __init__(self, phases, factor):
        self._phases = phases
        self._factor = factor
        self.values: list[torch.Tensor | None] = [None] * (len(phases.weights) * phases.losses)
        #: The sample that the present micro-batch ends at.
        self.end = 0
        #: The sample up to which each sum is complete: within a pass that failed they differ.
        self.ends = [0] * len(self.values)
        self._loss = 0
        self._norms = []

    def run_backward(self, losses):
        """Add the gradients of `losses`; return their squared norm if noise is measured."""
        phases = self._phases
        self._norms = []
        for self._loss, loss in enumerate(losses):
            if phases.weights and (phases.losses == 1 or loss.requires_grad):
                loss.backward(retain_graph=self._loss + 1 < phases.losses)
        if not phases.measures_noise:
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

    @torch.no_grad()
    def _take(self, place, gradient):
        total, accumulator = self.values[place], self._phases.accumulator
        if total is None:
            self.values[place] = accumulator.first(place, gradient, self._factor)
        else:
            self.values[place] = accumulator.add(place, total, gradient, self._factor)

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

        @torch.no_grad()
        def move(parameter):
            gradient, parameter.grad = parameter.grad, None
            place = self._loss * len(phases.weights) + index
            if self.ends[place] >= self.end:
                return
            if phases.measures_noise:
                self._norms.append(_norm(gradient))
            self._take(place, gradient)
            self.ends[place] = self.end

        return move
