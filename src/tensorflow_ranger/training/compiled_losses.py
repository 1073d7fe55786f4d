"""Each micro-batch's share of its batch's loss, whatever the losses divide by."""

from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.batches import mapped
from tensorflow_ranger.backend.phases import BatchTotals
from tensorflow_ranger.training.added_losses import AddedLosses
from tensorflow_ranger.training.loss_masses import (
    Masks,
    ignored_class,
    is_keras_call,
    masks_of,
    mass_of,
    value_of,
    values_of,
)
from tensorflow_ranger.training.matched_losses import MatchedLosses, is_keras, undivided


class Shares(NamedTuple):
    """A micro-batch's shares of the compiled losses."""

    total: Any  #: Their weighted sum, or None where there are no losses.
    unlogged: list[Any]  #: Scalars of the sum that are differentiated and not reported.
    parts: list[Any]  #: For each loss what is reported.
    shares: list[Any]  #: For each loss what is differentiated, without its weight.


class CompiledLosses(MatchedLosses):
    """Splits a compiled model's loss into shares whose sum over micro-batches is the batch's loss.

    Keras divides a loss by the number of samples, by the unmasked elements (those of the output's
    mask and of a mask that the loss itself sets, as ``ignore_class`` does), by the sum of the
    sample weights, or not at all. With the micro-batch's own loss ``L_k`` and mass ``D_k`` the
    share is ``L_k D_k / D``: exact whatever the sizes, because ``L_k D_k`` is the sum that Keras
    divided. A loss that is one number (one that a layer adds, one that returns a scalar, a model's
    own `compute_loss`) may be a mean over samples, a sum over them, or neither: `probe` measures
    which. Regularizers of weights count once per batch.

    Args:
        model: A compiled Keras model.
        tasks: `Tasks` whose losses are to be differentiated apart, or None.
        kind: "shares", "whole", or None to decide: see `microbatch`.
    """

    def __init__(self, model, tasks=None, kind=None):
        super().__init__(model)
        self._kind = kind
        self.whole_reason = None
        self._tasks = tasks
        self._places = []
        self._divided = []
        self._masking = set()  # places of the losses that mask their own values
        self._scalars = []
        self._are_per_row = False
        self.added = AddedLosses(model)
        self._sums = set()
        self.needs_outputs = False

    @property
    def needs_masses(self):
        """Whether a loss divides by something else than its number of samples."""
        return bool(self._places)

    @property
    def rows(self):
        """How many losses are differentiated: one, or one per task and what is added to them."""
        return 1 if self._tasks is None else len(self._tasks.groups) + bool(self.added.names)

    def inspect(self, y, y_pred, sample_weight):
        """Learn from one micro-batch's predictions what each loss divides by."""
        self.inspect_outputs(y, y_pred, sample_weight)
        self.added.find()

    def inspect_outputs(self, y, y_pred, sample_weight):
        """Learn what each loss divides by, and nothing of what layers add."""
        self._places, self._divided, self._scalars = [], [], []
        self._masking = set()
        self.needs_outputs = False
        self._structure = keras.tree.map_structure(lambda _: None, y_pred)

        def look(place, loss, y_true, y_pred, sample_weight):
            if not is_keras_call(loss):
                self._scalars.append(place)
                return
            values = values_of(loss, y_true, y_pred)
            own_mask = keras_internals.get_mask(values)
            if own_mask is not None:
                self._masking.add(place)
            masks = Masks(keras_internals.get_mask(y_pred), own_mask)
            is_scalar = len(values.shape) == 0
            if is_scalar and loss.reduction != "sum":
                self._scalars.append(place)
            # Keras takes no mean of a scalar but with weights, by which it multiplies that first.
            is_mean = (
                not is_scalar or sample_weight is not None or any(m is not None for m in masks)
            )
            if is_mean and loss.reduction not in (None, "none", "sum"):
                self._divided.append(place)
            if mass_of(loss, masks, sample_weight) is not None and len(values.shape) > 0:
                self._places.append(place)
                by_targets = masks.output is None and ignored_class(loss) is not None
                self.needs_outputs |= any(m is not None for m in masks) and not by_targets

        self.for_each(look, y, y_pred, sample_weight)
        self.whole_reason = self._reason_for_whole()

    @property
    def is_whole(self):
        """Whether the loss is computed once per batch, on the outputs of all its micro-batches."""
        return self.whole_reason is not None

    def _reason_for_whole(self):
        if self._kind == "shares":
            return None
        if self._kind == "whole":
            return 'loss="whole" asks for it'
        if self.is_own:
            return f"{type(self.model).__name__} overrides compute_loss"
        names = [self.name(place) for place in self._scalars]
        return f"the loss {names[0]} returns one number for a batch" if names else None

    @property
    def suspects(self):
        """Places of the losses per sample of which only a comparison tells if samples meet."""
        if self.is_own or self.is_whole or self._kind == "shares" or self._are_per_row:
            return []
        return [i for i, record in enumerate(self.losses) if not _is_known(record.loss)]

    def values_of_suspects(self, y, y_pred, sample_weight):
        """Return what each of `suspects` makes of some samples, one number per sample or more."""
        values = []

        def ask(place, loss, y_true, y_pred, sample_weight):
            if place in suspects:
                values.append(values_of(loss, y_true, y_pred))

        suspects = self.suspects
        self.for_each(ask, y, y_pred, sample_weight)
        return values

    @property
    def masks_unforeseen(self):
        """Places of the losses that mask their own values in a way that only outputs tell."""
        records = self.losses
        return [i for i in self._masking if ignored_class(records[i].loss) is None]

    def know_rows_apart(self):
        """Learn that in no loss samples meet, nor the rows of a sample."""
        self._are_per_row = True

    def suspect(self, places, may="meet"):
        """Take the batch's outputs for the losses at `places`.

        Args:
            places: Places of losses in which samples meet, or may meet.
            may: "meet", or "may meet" where they could not be compared.
        """
        if places:
            self.whole_reason = f"samples {may} in the loss {self.name(places[0])}"

    @property
    def questions(self):
        """For each loss that is one number of a micro-batch: how to name it to the user."""
        if self._asks_own:
            return [f"{type(self.model).__name__}.compute_loss"]
        scalars = [f"the loss {self.name(place)}" for place in self._asked_scalars]
        return scalars + [f"a loss added by layer {name!r}" for _, name in self.added.asked]

    @property
    def known(self):
        """For each of `questions` whether it is known to be a mean or a sum."""
        if self._asks_own:
            return [False]
        return [False] * len(self._asked_scalars) + self.added.known

    @property
    def _asks_own(self):
        return self.is_own and not self.is_whole

    @property
    def _asked_scalars(self):
        return [] if self.is_whole else self._scalars

    @property
    def follow_layers(self):
        """For each of `questions` whether it depends on more than outputs: on what layers add."""
        if self._asks_own:
            return [bool(self.added.names)]
        return [False] * len(self._asked_scalars) + [True] * len(self.added.asked)

    def answers(self, x, y, y_pred, sample_weight):
        """Return the numbers that `questions` names, one scalar each."""
        if self._asks_own:
            return [ops.sum(self.own_loss(x, y, y_pred, sample_weight))]
        values = []

        def ask(place, loss, y_true, y_pred, sample_weight):
            if place in self._asked_scalars:
                values.append(ops.sum(value_of(loss, y_true, y_pred, sample_weight)))

        self.for_each(ask, y, y_pred, sample_weight)
        return values + self.added.answers()

    def learn(self, sums):
        """Take which of `questions` are sums over the samples: a bool for each."""
        asked = ["own"] if self._asks_own else list(self._asked_scalars)
        self._sums = {key for key, is_sum in zip(asked, sums, strict=False) if is_sum}
        if not self._asks_own:
            self.added.learn(sums[len(asked) :])

    def masses(self, y, y_pred, sample_weight, dtype):
        """Return one scalar per loss: what it divides by in this micro-batch, 0 for samples."""
        masses = [ops.zeros((), dtype) for _ in self.losses]

        def measure(place, loss, y_true, y_pred, sample_weight):
            if place in self._places:
                masks = masks_of(loss, y_true, y_pred, place in self._masking)
                masses[place] = ops.cast(mass_of(loss, masks, sample_weight), dtype)

        self.for_each(measure, y, y_pred if self.needs_outputs else self._structure, sample_weight)
        return masses

    def of(self, x, y, y_pred, sample_weight, samples, whole) -> tuple[Any, Any, list]:
        """Return the micro-batch's share of the loss, and of each compiled loss alone.

        Args:
            x: The micro-batch's inputs.
            y: Its targets.
            y_pred: The model's outputs for it.
            sample_weight: Its sample weights, or None.
            samples: Scalar; its number of samples.
            whole: `BatchTotals`.

        Returns:
            Tuple ``(loss, logged, parts)``: the scalar to differentiate, with tasks a list of
            `rows` scalars; the scalar to report; and one scalar per compiled loss.
        """
        fraction = samples / whole.samples
        if self.is_own:
            value = self.own_loss(x, y, y_pred, sample_weight)
            factor = ops.cast(fraction, value.dtype)
            loss = ops.sum(value) * (1.0 if "own" in self._sums else factor)
            return loss, ops.mean(value) * factor if len(value.shape) else loss, []
        return self.with_added(self.of_outputs(y, y_pred, sample_weight, samples, whole), fraction)

    def with_added(self, shares, fraction):
        """Return what `of` returns, from the `Shares` of the compiled losses.

        Args:
            shares: `Shares` of the micro-batch.
            fraction: Scalar; the micro-batch's fraction of the batch's samples.
        """
        terms = [] if shares.total is None else [shares.total]
        added = self.added.shares(fraction)
        terms.extend(added)
        if not terms:
            raise ValueError(
                "No loss to compute: got a model compiled without `loss` and without "
                "added losses. Give `compile` a loss."
            )
        loss = terms[0]
        for term in terms[1:]:
            loss = loss + ops.cast(term, loss.dtype)
        logged = loss
        for term in shares.unlogged:
            logged = logged - ops.cast(term, loss.dtype)
        if self._tasks is not None:
            loss = self._rows(shares.shares, added, loss.dtype)
        return loss, logged, shares.parts

    def of_outputs(self, y, y_pred, sample_weight, samples, whole):
        """Return the `Shares` of the compiled losses: see `of`."""
        fraction = samples / whole.samples
        parts, unlogged, shares = [], [], []

        def share(place, loss, y_true, y_pred, sample_weight):
            if place in self._places and sample_weight is not None:
                sample_weight = ops.copy(sample_weight)  # Keras masks it in place on PyTorch
            value = value_of(loss, y_true, y_pred, sample_weight)
            if place in self._divided:
                value = undivided(value)
            if len(value.shape) > 0:
                # Without a reduction Keras differentiates the sum, and reports the mean.
                part = ops.mean(value) * ops.cast(fraction, value.dtype)
                weight = self.losses[place].loss_weights
                share = ops.sum(value)
                unlogged.append((share - part) * (1.0 if weight is None else weight))
            elif place in self._sums or getattr(loss, "reduction", None) == "sum":
                share = part = value
            else:
                ratio = fraction
                if place in self._places:
                    masks = masks_of(loss, y_true, y_pred, place in self._masking)
                    mass = mass_of(loss, masks, sample_weight)
                    mass = ops.cast(mass, whole.masses[place].dtype)
                    ratio = ops.divide_no_nan(mass, whole.masses[place])
                share = part = value * ops.cast(ratio, value.dtype)
            parts.append(part)
            shares.append(share)
            return share

        total = self.for_each(share, y, y_pred, sample_weight)
        return Shares(total, unlogged, parts, shares)

    def of_batch(self, x, y, y_pred, sample_weight, samples, dtype):
        """Return what `of` returns, for a batch that is one micro-batch.

        Args:
            x: The batch's inputs.
            y: Its targets.
            y_pred: The model's outputs for it.
            sample_weight: Its sample weights, or None.
            samples: Scalar; its number of samples.
            dtype: Name of the dtype of masses.
        """
        masses = None
        if self.needs_masses:
            masses = self.masses(y, y_pred, copies(sample_weight), dtype)
        totals = BatchTotals(samples, masses, None, None)
        return self.of(x, y, y_pred, sample_weight, samples, totals)

    def _rows(self, shares, added, dtype):
        assert self._tasks is not None
        weights = [record.loss_weights for record in self.losses]
        weighted = [
            ops.cast(share if weight is None else share * weight, dtype)
            for share, weight in zip(shares, weights, strict=True)
        ]
        zero = ops.zeros((), dtype)
        rows = [sum((weighted[i] for i in group), zero) for group in self._tasks.groups]
        return [*rows, sum((ops.cast(term, dtype) for term in added), zero)] if added else rows


def copies(data):
    """Return copies of nested arrays: Keras on PyTorch multiplies weights by masks in place."""
    return mapped(ops.copy, data)


def _is_known(loss):
    """Return whether Keras' own code says that each sample has a loss of its own."""
    function = getattr(loss, "fn", loss)
    return is_keras(loss) and (getattr(function, "__module__", None) or "").startswith("keras.")
