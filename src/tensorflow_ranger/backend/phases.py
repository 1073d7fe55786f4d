"""What a training step may ask of a batch, and what its micro-batches hand on.

A step knows how its framework loops, compiles and differentiates. What is computed in between it is
given as an object with the methods of `Phases`, of which it writes no attribute.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class BatchTotals(NamedTuple):
    """What a micro-batch must know of its batch."""

    samples: Any  #: Scalar; samples in the batch.
    masses: Any  #: One scalar per loss, or None where each loss is divided by the samples.
    factor: Any  #: Scalar that gradients are multiplied by when they are added, or None for 1.
    scale: Any  #: Scalar that the loss is multiplied by before its gradient, or None for 1.
    weights: Any = None  #: For each trained weight its value, or None to read it; None for all.


class OutputSpecs(NamedTuple):
    """What `BatchOutputs` look like, before there are any."""

    rows: list[tuple[Any, str]]  #: Shape without the leading axis, and name of the dtype.
    added: list[str]  #: Names of dtypes.


class BatchPart(NamedTuple):
    """Samples of a batch that this replica ran forward."""

    data: Any  #: Tuple ``(x, y, sample_weight)``.
    outputs: "BatchOutputs"  #: What the model made of them.
    weight: float | None  #: 1/n if n replicas computed the same samples, else None.


class BatchOutputs(NamedTuple):
    """What forward passes made of which a loss of the whole batch is computed."""

    rows: list[Any]  #: Tensors whose leading axis is the samples: outputs, then their masks.
    added: list[Any]  #: Scalars: the losses that layers added.


class Slopes(NamedTuple):
    """The gradients of each differentiated loss by the floating tensors of `BatchOutputs`."""

    rows: list[list[Any]]  #: For each loss a tensor per output, like the output.
    added: list[list[Any]]  #: For each loss a scalar per loss that layers added.


class Added(NamedTuple):
    """What a step's `add_gradients` returns."""

    sums: Any  #: The accumulator's sums with the micro-batch's gradients.
    aux: Any  #: What the differentiated function returned beside its loss.
    square: Any  #: Squared norm of the gradient, or None unless `measures_gradients`.
    has_gradient: list[bool]  #: Of each sum: whether the loss depends on the weight.
    slopes: list[list[Any]]  #: For each loss its gradients by the inputs, if there are any.


class LoopState(NamedTuple):
    """What a micro-batch hands to the next one, beside the sums of gradients."""

    seeds: Any  #: Values of the seeds after the micro-batch; each begins with the batch's own.
    place: Any  #: Scalar integer; the place in the batch of the next sample.
    metrics: Any  #: Values of the metrics' variables.
    layers: Any  #: State of layers: `StateTotals` of `training.layer_state`.
    samples: Any  #: Scalar; samples so far.
    loss: Any  #: Scalar; their part of the batch's loss.
    losses: Any  #: One scalar per compiled loss: their parts of it.
    assigned: Any  #: Values of the variables that a loss of the whole batch assigns.
    noise: Any  #: Empty, or the noise scale's sum of squares and its number of micro-batches.
    norms: Any  #: Empty, or the sum of the norms of the micro-batches' parts of the gradient.


class Phases(Protocol):
    """The phases of one batch, the same on every backend.

    `prepare` and `examine` come before the first batch. Of a batch, `open`, `begin` and `initial`
    tell what it begins with, `measure` finds the masses of a micro-batch, `add` adds one
    micro-batch, and `finish` updates the model. Where the loss is one of the whole batch, `forward`
    runs each micro-batch and `differentiate` the loss, before `add` runs each micro-batch again.
    """

    @property
    def model(self) -> Any:
        """The Keras model."""
        ...

    @property
    def weights(self) -> Sequence[Any]:
        """The variables that are trained."""
        ...

    @property
    def metrics(self) -> Sequence[Any]:
        """The variables of metrics."""
        ...

    @property
    def losses(self) -> int:
        """How many losses are differentiated."""
        ...

    @property
    def accumulator(self) -> Any:
        """What holds the sums of gradients: see `accumulation`."""
        ...

    @property
    def measures_gradients(self) -> bool:
        """Whether `add` needs the squared norm of each micro-batch's gradient."""
        ...

    @property
    def needs_masses(self) -> bool:
        """Whether a loss is divided by something else than its number of samples."""
        ...

    @property
    def cuts(self) -> bool:
        """Whether the loss is computed once per batch, on its outputs: see `forward`."""
        ...

    @property
    def output_specs(self) -> OutputSpecs:
        """What `forward` returns."""
        ...

    @property
    def gathers(self) -> bool:
        """Whether `finish` needs the batch's outputs."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether all is known that decides what a step computes."""
        ...

    @property
    def is_alone(self) -> bool:
        """Whether one replica runs the batch, though several may train the model."""
        ...

    @property
    def loops_in_python(self) -> bool:
        """Whether micro-batches differ in shape, so that no loop compiled by XLA can cut them."""
        ...

    def slices(self, data: Any, size: int, start: int = 0, stops: Any = ()) -> list[Any]:
        """Return the `Slice` objects of a batch: see `batches.slices`."""
        ...

    def table(self, data: Any, size: int) -> Any:
        """Return the division of a batch as an array of integers, or None for none."""
        ...

    def sorted(self, data: Any, table: Any = None) -> Any:
        """Return the `TrimmedSamples` of a batch, or None where they are cut as they are given."""
        ...

    def in_order(self, cuts: list[Any], parts: list[Any]) -> list[Any]:
        """Return what the micro-batches of `cuts` made as a list whose join is in their order."""
        ...

    def require_rows(self, samples: int) -> None:
        """Raise if layers keep state for another number of samples."""
        ...

    def compile_call(self, compiled: Any) -> None:
        """Let ``compiled(call)`` call the model from now on."""
        ...

    def prepare(self, data: Any, samples: int | None) -> None:
        """Learn from a micro-batch of a batch of `samples`, without training on it."""
        ...

    def probe(self, data: Any) -> Any:
        """Return what the model makes of some samples, whole and in two halves."""
        ...

    def examine(self, run: Any, data: Any, size: int) -> None:
        """Find out what `prepare` left open: `run` calls `probe`."""
        ...

    def open(self) -> list[Any]:
        """Return the sums of no gradient: one per weight, for each loss."""
        ...

    def begin(self) -> tuple[Any, Any]:
        """Return the factor and the scale of `BatchTotals`."""
        ...

    def initial(self) -> LoopState:
        """Return what the first micro-batch is handed."""
        ...

    def count(self, data: Any) -> Any:
        """Return the number of samples in `data` as a scalar."""
        ...

    def measure(self, data: Any) -> Any:
        """Return the masses of a micro-batch, one scalar per loss."""
        ...

    def agreed(self, parts: Any, masses: Any) -> tuple[Any, Any, list[Any]]:
        """Return the batch's samples and masses, and the place in it of each part's first sample.

        A part is a pair ``(data, weight)`` of what this replica has, with masses in all.
        """
        ...

    def add(
        self,
        sums: Any,
        state: LoopState,
        data: Any,
        totals: BatchTotals,
        replica_weight: float | None = None,
        slopes: Slopes | None = None,
    ) -> tuple[Any, LoopState, Any]:
        """Add one micro-batch; return the sums, the state, and the outputs if `gathers`."""
        ...

    def forward(
        self, state: LoopState, data: Any, samples: Any, replica_weight: float | None = None
    ) -> tuple[LoopState, BatchOutputs]:
        """Run a micro-batch forward; `add` with the same state draws the same numbers."""
        ...

    def differentiate(
        self,
        sums: Any,
        begun: LoopState,
        ended: LoopState,
        parts: list[BatchPart],
        totals: BatchTotals,
    ) -> tuple[Any, LoopState, list[Slopes]]:
        """Compute the batch's loss; return sums, state of the second pass, slopes of each part."""
        ...

    def finish(
        self, sums: Any, state: LoopState, rows: Any, data: Any = None, outputs: Any = ()
    ) -> Any:
        """Update the model with the batch; return the logs."""

    def logs(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return what a batch logs: the metrics' `results`, and what is measured beside them."""
        ...
