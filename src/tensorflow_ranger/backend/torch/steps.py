"""PyTorch: a loop in Python; gradients are added as the backward pass finds them."""

import contextlib
import functools

import torch
from torch._functorch import config as functorch

from tensorflow_ranger.backend.batches import count, cut, joined_outputs
from tensorflow_ranger.backend.phases import BatchPart, BatchTotals, Phases, Slopes
from tensorflow_ranger.backend.torch.added_gradients import Sums
from tensorflow_ranger.backend.torch.arrays import foreign_state, kept
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


def first_part(data):
    """Return the batch: a process is one replica."""
    return data


def batches_here(data):
    """Return a list of the batch: a process is one replica."""
    return [data]


def state_of_one(model, metrics):
    """Return None: a step of one replica reads the variables."""


def without_optionals(data):
    """Return `data` of an iterator with None for what is not there: it is so already."""
    return data


def make_step(phases, loop, compiled):
    """Return the step that runs `phases`."""
    return Step(phases, compiled)


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
        self._last_sums = None
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
            self._last_sums = None
            if self._batch is not None:
                self._batch.sums.before = None
            torch.cuda.empty_cache()
        self._unfinished = True
        self.prepare(state, data, size)
        if self._batch is None or self._batch.data is not data or phases.cuts:
            if phases.cuts:  # its first pass needs memory for the outputs
                self._last_sums = None
            self._batch = _Batch(phases, data, size, self._last_sums)
        elif phases.measures_gradients:
            self._batch.miss_gradients()
        batch, self._last_sums = self._batch, None
        undone = _undone_on_error(phases.model) if phases.cuts else contextlib.nullcontext()
        with undone, _own_draws(), self._context():
            batch.run(size)
        gathered = (data, batch.outputs) if phases.gathers else ()
        with torch.no_grad():
            logs = phases.finish(batch.sums.whole(), batch.state, rows, *gathered)
        self._batch, self._last_sums = None, batch.sums.values
        self._unfinished = False
        return logs, None

    def prepare(self, state, data, size):
        """Learn from a micro-batch of a batch what `run` needs to know, once."""
        if self._prepared:
            return
        with torch.no_grad(), kept(self._phases.model):
            self._phases.prepare(cut(data, 0, size), count(data))
            comparable = data if replica_count() == 1 else None  # replicas must decide alike
            self._phases.examine(self._phases.probe, comparable, size)
        self._prepared = True

    def prepare_again(self):
        """Learn from the next micro-batch anew; a batch on its way goes on."""
        self._prepared = False

    @property
    def is_settled(self):
        """Whether all is known that decides what the step computes."""
        return self._phases.is_settled

    def require_rows(self, samples):
        """Raise if layers keep state for another number of samples."""
        self._phases.require_rows(samples)


class _Batch:
    """A batch on its way: what its micro-batches have handed on so far."""

    def __init__(self, phases, data, size, last_sums):
        self._phases = phases
        self.data = data
        self._cuts, self._outputs = [], []
        self._start = 0
        self._slopes = None
        with torch.no_grad():
            factor, scale = phases.begin()
            self.sums = Sums(phases, factor, last_sums)
            masses = None
            if phases.needs_masses:
                masses = 0
                for each in phases.slices(data, size):
                    masses = self._add_masses(masses, each.of(data))
            samples, masses, (self._place,) = phases.agreed([(data, None)], masses)
            self.state = phases.initial()._replace(place=self._place)
            self._totals = BatchTotals(samples, masses, factor, scale)

    def _add_masses(self, masses, micro_batch):
        measured = self._phases.measure(micro_batch)
        return [a + b for a, b in zip(masses, measured, strict=True)] if masses else measured

    def run(self, size):
        """Add the micro-batches that are left."""
        cuts = self._phases.slices(self.data, size, self._start, self.sums.ends)
        if self._phases.cuts and (replica_count() > 1 or count(self.data) > size):
            self._slopes = self._cut_loss(cuts)
        with self.sums.hooks():
            for each in cuts:
                self._add(each)

    def _add(self, each):
        self.sums.end = each.stop
        slopes = self._slopes
        if slopes is not None:
            slopes = Slopes(each.slopes_of(slopes.rows), slopes.added)
        _, self.state, output = self._phases.add(
            self.sums,
            each.placed(self.state, self._place),
            each.of(self.data),
            self._totals,
            slopes=slopes,
        )
        self._cuts.append(each)
        self._outputs.append(output)
        self._start = each.stop

    @property
    def outputs(self):
        """What the micro-batches made, in the order of the batch."""
        return self._phases.in_order(self._cuts, self._outputs)

    @torch.no_grad()
    def _cut_loss(self, cuts):
        """Compute the batch's loss; return the `Slopes` of its rows."""
        phases, ended, parts = self._phases, self.state, []
        with kept(phases.model):  # generators: the second pass draws what this one draws
            for each in cuts:
                ended, part = phases.forward(
                    each.placed(ended, self._place), each.of(self.data), self._totals.samples
                )
                parts.append(part)
        parts = phases.in_order(cuts, parts)
        batch = [BatchPart(self.data, joined_outputs(parts), None)]
        _, self.state, (slopes,) = phases.differentiate(
            self.sums, self.state, ended, batch, self._totals
        )
        return slopes

    def miss_gradients(self):
        """Measure nothing: after a pass that failed, weights differ in their micro-batches."""
        noise, norms = (
            [torch.full_like(value, float("nan")) for value in values]
            for values in (self.state.noise, self.state.norms)
        )
        self.state = self.state._replace(noise=noise, norms=norms)
