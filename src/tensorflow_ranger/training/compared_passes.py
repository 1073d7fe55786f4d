"""Forward passes over a few samples, whole and in parts: what they tell of losses and metrics."""

import keras
from keras import ops

from tensorflow_ranger.backend.batches import count, cut, rows_of
from tensorflow_ranger.backend.out_of_memory import is_out_of_memory
from tensorflow_ranger.training import invented
from tensorflow_ranger.training.compiled_losses import copies
from tensorflow_ranger.training.examination import Examination
from tensorflow_ranger.training.forward_passes import ForwardPasses
from tensorflow_ranger.training.layer_state import CARRIED
from tensorflow_ranger.training.metrics_of_batch import masked, with_masks
from tensorflow_ranger.training.probe import Look, Looks


class ComparedPasses(ForwardPasses):
    """Finds by comparison what abstract shapes leave open.

    Samples of one kind may hide that they meet in a loss: weights made of the batch's classes are
    the same for any samples of one class. So the first half is also looked at beside samples that
    no data has, with other targets and other outputs.

    Args:
        *arguments: Those of `ForwardPasses`.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._invents = True

    def examine(self, run, data, size):
        """Find out what `prepare` left open.

        Args:
            run: Function that calls `probe` on samples and returns its `Looks` as arrays.
            data: Tuple ``(x, y, sample_weight)`` of the batch.
            size: Samples per micro-batch.
        """

        def looks_at(some):
            try:
                return run(some)
            except Exception as error:
                if is_out_of_memory(error) or not self._invents:
                    raise
                self._invents = False  # a loss may refuse such targets
                return run(some)

        losses, metrics = self.compiled_losses, self.metrics_of_batch
        asks = losses.questions or losses.suspects or metrics.unclear or metrics.own
        if asks or self.state.unclear:
            self._invents = bool(losses.suspects or metrics.unclear)
            is_random = bool(self.unplaced)
            examination = Examination(self.state, losses, metrics, is_random)
            self.unknown = examination.run(looks_at, data, size)
            self.is_settled = examination.is_settled
        self.state.find_normalizations()

    def probe(self, data):
        """Return the `Looks` at some samples, whole and in two halves. Nothing is assigned."""
        half = count(data) // 2
        first, second = cut(data, 0, half), cut(data, half, count(data) - half)
        initial = self.initial()
        begun = Look(initial.layers.values, [], initial.metrics, [])
        whole, y_pred = self._look(data, initial)
        one, _ = self._look(first, initial, cut(y_pred, 0, half))
        rest = cut(y_pred, half, count(data) - half)
        later = initial._replace(samples=ops.cast(half, self._dtype), place=initial.place + half)
        layers = self.state.continued(initial.layers, one.state)
        gone_on = later._replace(metrics=one.metrics, layers=layers)
        among_invented, after_first = begun, begun
        if self._invents:
            among_invented, after_first = self._look_at_invented(data, y_pred, half, one)
        return Looks(
            begun,
            whole,
            one,
            self._look(second, later, rest)[0],
            self._look(second, gone_on, rest, carried=(CARRIED, None))[0],
            among_invented,
            after_first,
        )

    def _look(self, data, begun, given=None, carried=(CARRIED,)):
        """Return a `Look`, and the outputs with their masks.

        Args:
            data: Tuple ``(x, y, sample_weight)`` of some samples.
            begun: `LoopState` that they begin with.
            given: Outputs and masks of these samples when more ran with them: losses and metrics
                are compared at the same outputs, whatever layers draw.
            carried: Kinds of layers' state that go on from the samples before.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self._scope(None, begun, rows_of(x), carried) as scope, self._freeing():
            y_pred = self.call(x)
            outputs = with_masks(y_pred)
            if given is not None and not (self.compiled_losses.is_own and self.model.losses):
                y_pred = masked(*given)
            answers = self.compiled_losses.answers(x, y, y_pred, copies(sample_weight))
            values = self.compiled_losses.values_of_suspects(y, y_pred, copies(sample_weight))
            metrics = [scope.get_current_value(v) for v in self.metrics]
            state = self.state.read(scope)
        if self.head is None:
            metrics = self.metrics_of_batch.updated(metrics, y, y_pred, copies(sample_weight))
        return Look(state, answers, metrics, values), outputs

    def _look_at_invented(self, data, outputs, half, first):
        """Return the `Look` at the first half among invented samples, and at these after it.

        Args:
            data: Tuple ``(x, y, sample_weight)`` of some samples.
            outputs: Outputs and masks of these samples.
            half: How many of them stay as they are.
            first: The `Look` at these.
        """
        _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred, masks = outputs
        y = invented.among_targets(y, half)
        y_pred = invented.among_outputs(y_pred, half)
        samples, begun = count(data), self.initial()

        def updated(values, start, size):
            targets, some, weights = cut((y, (y_pred, masks), sample_weight), start, size)
            return self.metrics_of_batch.updated(values, targets, masked(*some), copies(weights))

        with self._scope(None, begun, rows_of(data)):
            given = masked(*cut((y_pred, masks), 0, samples))
            values = self.compiled_losses.values_of_suspects(y, given, copies(sample_weight))
        return (
            Look([], [], updated(begun.metrics, 0, samples), [value[:half] for value in values]),
            Look([], [], updated(first.metrics, half, samples - half), []),
        )
