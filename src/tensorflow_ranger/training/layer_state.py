"""What becomes of the state of layers when a batch is run in micro-batches."""

import contextlib
from typing import Any, NamedTuple

import keras
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals, replicas
from tensorflow_ranger.distribution.batch_state import StateBefore
from tensorflow_ranger.training.call_scope import lasting
from tensorflow_ranger.training.normalizations import Normalizations

MEAN = "mean"  #: The batch's value is the mean of the micro-batches', weighted by samples.
SUM = "sum"  #: The batch's value gains what every micro-batch gains.
CARRIED = "carried"  #: Each micro-batch goes on from the one before.
LAST = "last"  #: The last micro-batch's value is the batch's.
ROWS = "rows"  #: The variable has a row for each sample.
UNKNOWN = "unknown"  #: None of these. Floats are averaged, other numbers are the last.


class StateTotals(NamedTuple):
    """What micro-batches hand on of the layers' state."""

    values: list[Any]  #: One tensor per assigned variable.
    spreads: list[Any]  #: For each normalization the spread of the micro-batches' means.
    begun: list[Any]  #: What the foreign variables held when the batch began.


class LayerState:
    """The variables that layers assign while they are called, over the micro-batches of a batch.

    Such state moves once per batch. How it does depends on what it is: see the names above.
    `BatchNormalization`, `SpectralNormalization` and recurrent layers with ``stateful=True`` are
    known; of the rest `probe` finds out. `Normalizations` corrects moving variances.

    Args:
        model: A built Keras model.
        seeds: Variables of random seeds, which belong to nobody here.
    """

    def __init__(self, model, seeds):
        self._model = model
        self._ignored = {id(v) for v in (*seeds, *model.metrics_variables)}
        self._foreign = arrays.foreign_state(model)
        self._recurrent = [
            layer
            for layer in keras_internals.layers_of(model)
            if isinstance(layer, keras.layers.RNN) and layer.stateful
        ]
        self._weights = {id(v) for v in model.trainable_variables}
        self._normalizations = Normalizations(model, self._foreign)
        # Keras does not track them, and so drops what they are assigned on JAX.
        self._rows = [v for layer in self._recurrent for v in keras.tree.flatten(layer.states)]
        self.variables = [*self._rows, *self._foreign]
        self.kinds = [*(ROWS for _ in self._rows), *(None for _ in self._foreign)]
        self.decays = [1.0] * len(self.variables)
        self.adds = [False] * len(self.variables)

    def find(self, assigned, samples):
        """Learn which variables layers assign.

        Args:
            assigned: The Keras variables that a call assigned.
            samples: Samples of the batch.

        Raises:
            ValueError: State with a row for each sample has rows for another number of samples.
        """
        assigned = [*lasting(self._model, assigned), *self._foreign, *self._rows]
        found = {id(v): v for v in assigned if id(v) not in self._ignored}
        self.variables = list(found.values())
        known = self._known_kinds()
        self.kinds = [known.get(id(v)) for v in self.variables]
        self.decays = [1.0] * len(self.variables)
        self.adds = [False] * len(self.variables)
        self.require_rows(samples)

    def guess_rows(self, samples):
        """Take state with as many rows as the batch has samples for theirs, before a first call.

        Returns:
            List of the variables that were not taken so before.
        """
        if samples is None:
            return []
        known = {id(v) for v in self.variables} | self._ignored
        guessed = [
            v
            for v in self._model.non_trainable_variables
            if id(v) not in known and tuple(v.shape[:1]) == (samples,)
        ]
        self._rows += guessed
        self.variables += guessed
        self.kinds += [ROWS] * len(guessed)
        self.decays += [1.0] * len(guessed)
        self.adds += [False] * len(guessed)
        return guessed

    def forget_guess(self, guessed):
        """Take back what `guess_rows` returned."""
        del self._rows[len(self._rows) - len(guessed) :]
        for values in (self.variables, self.kinds, self.decays, self.adds):
            del values[len(values) - len(guessed) :]

    def _known_kinds(self):
        known = {}
        for layer in keras_internals.layers_of(self._model):
            if isinstance(layer, keras.layers.BatchNormalization):
                known.update((id(v), MEAN) for v in layer.non_trainable_variables)
            elif isinstance(layer, keras.layers.SpectralNormalization) and layer.built:
                known.update((id(v), MEAN) for v in (layer.kernel, layer.vector_u))
        known.update((id(v), MEAN) for v in arrays.known_means(self._foreign))
        known.update((id(v), ROWS) for v in self._rows)
        known.update((id(v), LAST) for v in self.variables if _is_seed(v))
        return known

    def find_normalizations(self):
        """Learn which variables are a moving mean and its variance."""
        self._normalizations.find(self.variables)

    @property
    def unclear(self):
        """Places of the variables whose kind `probe` has to find."""
        return [i for i, kind in enumerate(self.kinds) if kind is None]

    @property
    def has_normalizations(self):
        """Whether a layer normalizes by the statistics of the samples it sees."""
        return self._normalizations.hold_any(self.variables)

    def name(self, place):
        """Return the path of a variable and the layer that assigns it."""
        variable = self.variables[place]
        layers = keras_internals.layers_of(self._model)[::-1]
        owners = [layer for layer in layers if any(v is variable for v in layer.variables)]
        owner = min(owners, key=lambda layer: len(layer.variables), default=None)
        path = getattr(variable, "path", "a variable")
        return path if owner is None else f"{path} of {type(owner).__name__} {owner.name!r}"

    def require_rows(self, samples):
        """Raise if state has rows for another number of samples.

        Raises:
            ValueError: It has.
        """
        for variable, kind in zip(self.variables, self.kinds, strict=True):
            if kind == ROWS and replicas.has_several(self._model.trainable_variables):
                raise ValueError(
                    f"{variable.path} keeps state for each sample, and several replicas train the "
                    "model: each has samples of its own. Train it on one."
                )
            if kind == ROWS and samples is not None and variable.shape[0] != samples:
                raise ValueError(
                    f"{variable.path} keeps state for {variable.shape[0]} samples, and the batch "
                    f"has {samples}. Give fit batches of {variable.shape[0]} samples, and leave "
                    "out what remains of the data."
                )

    @contextlib.contextmanager
    def placed(self, totals, start, rows, carried=(CARRIED,)):
        """Put the values in place with which a micro-batch begins; give the pairs for a scope.

        Args:
            totals: `StateTotals` of the micro-batches before, or None at the batch's beginning.
            start: Scalar; samples of the batch before this micro-batch.
            rows: Scalar; samples of this micro-batch.
            carried: Kinds of state that go on from the micro-batch before.
        """
        pairs, foreign, in_rows = [], [], []
        for place, (variable, kind) in enumerate(zip(self.variables, self.kinds, strict=True)):
            goes_on = kind in carried or kind == ROWS
            value = variable.value if totals is None or not goes_on else totals.values[place]
            if kind == ROWS:
                value = _rows(value, start, rows)
                in_rows.append(variable)
            if self._is_foreign(variable):
                begun = arrays.copied(value) if totals is None else totals.begun[len(foreign)]
                foreign.append((variable, value if goes_on else begun))
            elif (totals is not None and goes_on) or id(variable) not in self._weights:
                pairs.append((variable, value))
        static = rows if isinstance(rows, int) else None
        with keras_internals.rows_of_state(self._recurrent if in_rows else [], in_rows, static):
            for variable, value in foreign:
                variable.assign(value)
            try:
                yield pairs
            finally:
                for variable, value in foreign if totals is None else ():
                    variable.assign(value)

    def _is_foreign(self, variable):
        return any(variable is other for other in self._foreign)

    def read(self, scope):
        """Return the variables' values after a call, from the scope that it ran in."""
        values = []
        for variable, kind in zip(self.variables, self.kinds, strict=True):
            value = scope.get_current_value(variable)
            if value is None:
                value = arrays.copied(variable.value)
            if kind != ROWS and tuple(value.shape) != tuple(variable.shape):
                value = ops.reshape(value, variable.shape)  # a graph's loop wants known shapes
            values.append(value)
        return values

    def open(self):
        """Return the `StateTotals` that a batch begins with."""
        values = [arrays.copied(v.value) for v in self.variables]
        for place, (value, kind) in enumerate(zip(values, self.kinds, strict=True)):
            if kind == SUM:
                values[place] = self._decayed(place, value)
        return StateTotals(
            values,
            self._normalizations.open(values),
            [arrays.copied(variable.value) for variable in self._foreign],
        )

    def add(self, totals, values, before, samples, part=None):
        """Return the totals with a micro-batch's values added.

        Args:
            totals: `StateTotals` of the micro-batches before.
            values: What `read` returned.
            before: Scalar; samples of the micro-batches before.
            samples: Scalar; samples of this one.
            part: What of its sums counts here, 1/n if n replicas run it, or None for all.
        """
        if not self.variables:
            return totals
        fraction = samples / (before + samples)
        sums = []
        for place, (kind, old, new) in enumerate(
            zip(self.kinds, totals.values, values, strict=True)
        ):
            if kind == ROWS:
                sums.append(_with_rows(old, new, before))
            elif kind == SUM:
                gain = new - self._decayed(place, self._begun(totals, place))
                sums.append(old + (gain if part is None else gain * ops.cast(part, gain.dtype)))
            elif is_averaged(kind, old.dtype):
                sums.append(old + (new - old) * ops.cast(fraction, old.dtype))
            else:
                sums.append(new)
        spreads = self._normalizations.added(
            totals.spreads, totals.values, values, sums, before, samples
        )
        return StateTotals(sums, spreads, totals.begun)

    def continued(self, totals, values):
        """Return the totals from which unclear state goes on with `values`."""
        pairs = zip(self.kinds, totals.values, values, strict=True)
        return totals._replace(values=[new if kind is None else old for kind, old, new in pairs])

    def assign(self, totals, samples):
        """Assign the batch's values, which `final` returns, to the variables."""
        for variable, value in zip(self.variables, self.final(totals, samples), strict=True):
            variable.assign(value)

    def final(self, totals, samples):
        """Return the batch's values of the variables.

        Args:
            totals: `StateTotals` after the last micro-batch.
            samples: Scalar; samples of the batch.
        """
        return self._normalizations.final(totals.values, totals.spreads, samples)

    def _begun(self, totals, place):
        variable = self.variables[place]
        for foreign, begun in zip(self._foreign, totals.begun, strict=True):
            if foreign is variable:
                return begun
        return variable.value

    def assume_rows(self, samples):
        """Take unclear state with as many rows as the batch has samples for theirs.

        Returns:
            List of their places.
        """
        found = [i for i in self.unclear if tuple(self.variables[i].shape[:1]) == (samples,)]
        for place in found:
            self.kinds[place] = ROWS
        return found

    def forget_rows(self, places):
        """Take back what `assume_rows` returned."""
        for place in places:
            self.kinds[place] = None

    def before(self, totals):
        """Return the `StateBefore` of a batch, for replicas that make one of several totals."""
        begun = [self._begun(totals, place) for place in range(len(self.variables))]
        summed = [
            i
            for i, (kind, adds) in enumerate(zip(self.kinds, self.adds, strict=True))
            if kind == SUM or adds
        ]
        floats = [i for i, v in enumerate(begun) if keras.backend.is_float_dtype(v.dtype)]
        return StateBefore(
            [self._decayed(i, v) if i in summed else v for i, v in enumerate(begun)],
            [i for i in floats if i not in summed],
            summed,
            self._normalizations.means,
        )

    def _decayed(self, place, value):
        decay = self.decays[place]
        return value if decay == 1.0 else value * ops.cast(decay, value.dtype)


def is_averaged(kind, dtype):
    """Return whether state of this kind and dtype is the mean over micro-batches."""
    return kind in (MEAN, UNKNOWN, None) and keras.backend.is_float_dtype(dtype)


def _is_seed(variable):
    return keras.backend.standardize_dtype(variable.dtype) == "uint32" and variable.shape == (2,)


def _rows(value, start, rows):
    starts = [ops.cast(start, "int32"), *[0] * (len(value.shape) - 1)]
    return ops.slice(value, starts, (rows, *value.shape[1:]))


def _with_rows(value, rows, start):
    places = ops.arange(ops.shape(rows)[0], dtype="int32") + ops.cast(start, "int32")
    return ops.scatter_update(value, ops.expand_dims(places, 1), rows)
