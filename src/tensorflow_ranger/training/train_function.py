"""The train function that `microbatch` gives a model: it cuts a batch, retries and measures."""

import contextlib
import functools
import gc
import logging

import keras

from tensorflow_ranger.backend import keras_internals, replicas, steps
from tensorflow_ranger.backend.out_of_memory import is_out_of_memory
from tensorflow_ranger.batch_size.size_policy import WHOLE, FixedSize, SearchedSize
from tensorflow_ranger.distribution.reduction import merged_gradients, require_replicas
from tensorflow_ranger.training.batch_measures import (
    bytes_in_use,
    measured,
    rows_known_to_graph,
    samples_of,
    start_clock,
)
from tensorflow_ranger.training.fit_checks import require_same_variables, require_targets
from tensorflow_ranger.training.model_state import attached
from tensorflow_ranger.training.padding import Padding
from tensorflow_ranger.training.rematerialization.rematerialization import Rematerialization
from tensorflow_ranger.training.shown_plan import ShownPlan
from tensorflow_ranger.training.step_maker import StepMaker
from tensorflow_ranger.training.task_losses import (
    require_single_update,
    require_whole_windows,
)
from tensorflow_ranger.training.verification.inertness import require_inert

_logger = logging.getLogger("tensorflow_ranger")


class TrainFunction:
    """Gives a model a train function that runs each batch in micro-batches.

    Args:
        model: The Keras model.
        size: Samples per micro-batch, "auto", or `WHOLE`.
        limit: Bytes that training may need, or None.
        **settings: Those of `StepMaker`.
    """

    def __init__(self, model, size, *, limit=None, **settings):
        self._model = model
        self.maker = StepMaker(model, **settings)
        self._optimizer = None
        self._is_inert = False
        self._limit = limit
        self.is_whole = size == WHOLE
        self._is_searched = size == "auto"
        self._most = None if self._is_searched else size
        self._sizes = self._searched_size() if self._is_searched else FixedSize(size)
        self._plan = ShownPlan(model)
        self._plan.show(self._sizes.plan)

    @staticmethod
    def of(model):
        """Return the `TrainFunction` that trains `model`, or None."""
        installed = attached(model, "microbatch")
        makes = vars(model).get("make_train_function")  # which a user may have replaced since
        is_ours = installed is not None and makes == installed.make_train_function
        return installed if is_ours else None

    def make_train_function(self, force=False):
        """Set the model's `train_function`, in place of `keras.Model.make_train_function`."""
        model = self._model
        require_whole_windows(model)
        require_single_update(model.optimizer)
        self.maker.norms = None  # those of another `fit`: GradientNorm sets them after this
        is_made = model.train_function is not None and model.optimizer is self._optimizer
        if is_made and not force:
            require_same_variables(model, self._variables)
            return
        self._variables, self._optimizer = list(model.trainable_variables), model.optimizer
        if keras.config.backend() == "torch" and model.steps_per_execution > 1:
            raise ValueError(
                "`steps_per_execution` must be 1 with the PyTorch backend: got "
                f"steps_per_execution={model.steps_per_execution}. Leave it out of compile."
            )
        self.maker.clear()
        runs = {
            "jax": self._run_from_iterator,
            "tensorflow": self._run_from_tensorflow_iterator,
            "torch": lambda data: self._run_batch(None, data[0], "all")[0],
        }
        require_replicas(model.variables)
        Rematerialization.require_no_scope(model)
        if self._is_searched and replicas.in_lockstep(model.variables):
            raise ValueError(
                "size='auto' is measured by one process: got several, which must agree on the "
                "size. Find it on one machine (microbatch_plan tells it), and give the integer."
            )
        self._merged = contextlib.nullcontext
        if replicas.has_several(model.variables):
            self._merged = functools.partial(merged_gradients, model.optimizer)
            replicas.begin_alike([*model.variables, *model.optimizer.variables])
        model.train_function = runs[keras.config.backend()]

    def _run_from_tensorflow_iterator(self, iterator):
        rows = rows_known_to_graph(iterator, self._model)
        return self._run_from_iterator(None, iterator, rows)[0]

    def _run_from_iterator(self, state, iterator, rows: int | str | None = "all"):
        logs = None
        try:
            for _ in range(self._model.steps_per_execution):
                try:
                    data = next(iterator)
                except StopIteration:
                    if logs is None:
                        raise
                    break
                logs, state = self._run_batch(state, data, rows)
        except BaseException:
            if state is not None:
                # `fit` on JAX takes the values out of the variables. If it ends here, it must find
                # them where it looks for them: the weights would be lost otherwise.
                keras_internals.return_state(self._model, state)
            raise
        return logs, state

    def _run_batch(self, state, data, rows):
        data = keras.utils.unpack_x_y_sample_weight(steps.without_optionals(data))
        samples = samples_of(data)
        rows = samples if rows == "all" else rows
        require_targets(self._model, data)
        _, step = self._step_for(data)
        self._check_padding(state, data)
        step.require_rows(samples)
        while True:
            self._begin(state, data, samples)
            phases, step = self._step_for(data)
            size = min(self._sizes.size, samples)
            begun = start_clock() if self._sizes.is_timed(samples) else None
            try:
                with self._merged():
                    logs, state = step.run(state, data, size, rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if _meets_others(phases):
                    raise MemoryError(
                        f"Out of memory with micro-batches of {size} on this process, and others "
                        "train on the same batch with it: use a smaller one."
                    ) from error
                self._take_less(size, error, data)
            else:
                self._succeed(size, measured(begun, logs), data)
                self._plan.show(self._sizes.plan)
                if not (self._is_searched or self.is_whole or self.maker.padding is not None):
                    self._plan.warn_of_no_split(size, samples)
                if size < samples:
                    self._plan.note_loss(phases.compiled_losses.whole_reason)
                if phases.padding is not None:
                    self._plan.note_cells(functools.partial(_cells_of, phases.padding, data, size))
                self._plan.note_rematerialization(phases.rematerialization)
                self._plan.note_head(phases.head, phases.whole_head)
                if not step.is_settled:
                    self.maker.clear()
                return logs, state
            gc.collect()  # frees what the failed pass held, once its error is gone

    def _begin(self, state, data, samples):
        def memory_of(size, segments=None):
            return self._step_for(data, segments)[1].memory(state, data, size)

        try:
            self._sizes.begin(
                samples,
                bytes_in_use,
                memory_of if steps.KNOWS_MEMORY else None,
                functools.partial(self._choices, state, data),
            )
        except MemoryError:
            self._fit_one_sample(data)
            self._begin(state, data, samples)
        self._plan.show(self._sizes.plan)

    def _choices(self, state, data):
        def prepare(rematerialization):
            _, step = self.maker.make(data, rematerialization)
            step.prepare(state, data, self._sizes.size)

        return self.maker.replays.choices(prepare)

    def _succeed(self, size, measures, data):
        try:
            self._sizes.succeeded(size, *measures)
        except MemoryError:  # one sample has needed more than the limit
            self._fit_one_sample(data)

    def _take_less(self, size, error, data):
        try:
            self._sizes.failed(size, error)
        except MemoryError:
            self._fit_one_sample(data)
        self._plan.show(self._sizes.plan)

    def _fit_one_sample(self, data):
        """Go on in less memory, or raise the `MemoryError` that is being handled."""
        what = self.maker.take_less_memory(data, self._sizes.segments)
        if what is None:
            raise
        _logger.warning("One sample does not fit the memory: %s from now on.", what)
        if self._is_searched or self.maker.replays.searched is not None:
            self._sizes = self._searched_size()

    def _searched_size(self):
        return SearchedSize(self._limit, self.maker.replays.searched, self._most)

    def _step_for(self, data, segments=None):
        """Return the `BatchStep` for a batch like `data`, and the step that runs it.

        Args:
            data: Tuple ``(x, y, sample_weight)``.
            segments: The `Segments` that are run again, or None for those to run next.
        """
        return self.maker.step_for(data, self._sizes.segments if segments is None else segments)

    def _check_padding(self, state, data):
        """Compare the first samples that have padding, with it and without."""
        if self.maker.padding is None or self._is_inert:
            return
        model, maker = self._model, self.maker
        held = contextlib.nullcontext()
        if state is not None:
            held = keras_internals.state_in_variables(model, state)
        with held:
            padding = Padding(model, maker.padding, is_compiled=False)
            # Of replicas within one process, the first that has padding tells for all.
            self._is_inert = any(
                require_inert(model, each, padding, maker.loss) for each in steps.batches_here(data)
            )


def _cells_of(padding, data, size):
    """Return the time steps of a batch, padded, and those that are computed, on all replicas."""
    each = [padding.cells_of(batch, size) for batch in steps.batches_here(data)]
    return tuple(map(sum, zip(*each, strict=True)))


def _meets_others(phases):
    # A loss of the whole batch is computed by all processes together, in the middle of it.
    return replicas.in_lockstep(phases.weights) or (phases.cuts and replicas.count() > 1)
