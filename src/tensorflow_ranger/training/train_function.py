"""The train function that `microbatch` gives a model: it cuts a batch, retries and measures."""

import contextlib
import functools
import gc
import logging

import keras

from tensorflow_ranger.accumulation.batch_buffer import BatchBuffer
from tensorflow_ranger.accumulation.momentum_fold import MomentumFold
from tensorflow_ranger.backend import arrays, keras_internals, replicas, steps
from tensorflow_ranger.backend.out_of_memory import is_out_of_memory
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.batch_size.size_policy import WHOLE, FixedSize, SearchedSize
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.distribution.reduction import merged_gradients, require_replicas
from tensorflow_ranger.multitask.task_buffer import TaskBuffer
from tensorflow_ranger.training.batch_measures import (
    bytes_in_use,
    measured,
    rows_known_to_graph,
    samples_of,
    start_clock,
)
from tensorflow_ranger.training.batch_step import BatchStep
from tensorflow_ranger.training.model_state import attached, tasks_of
from tensorflow_ranger.training.padding import Padding
from tensorflow_ranger.training.rematerialization.choice import RematerializationChoice
from tensorflow_ranger.training.rematerialization.rematerialization import Rematerialization
from tensorflow_ranger.training.shown_plan import ShownPlan
from tensorflow_ranger.training.step_statistics import StepStatistics
from tensorflow_ranger.training.task_losses import (
    require_single_update,
    require_whole_windows,
    resolved_tasks,
)
from tensorflow_ranger.training.verification.inertness import require_inert

_logger = logging.getLogger("tensorflow_ranger")


class TrainFunction:
    """Gives a model a train function that runs each batch in micro-batches.

    Args:
        model: The Keras model.
        size: Samples per micro-batch, "auto", or `WHOLE`.
        limit: Bytes that training may need, or None.
        accumulator_dtype: Name of a dtype, or None.
        loss: "shares", "whole", or None to decide: see `microbatch`.
        loop: Where the loop runs: "device", inside one compiled step; "host", in Python; None for
            the faster one.
        may_fold: Whether the momentum of SGD may hold the sum where that is exact.
        padding: Number that stands behind the end of each sample, or None to take samples as long
            as they are given.
        rematerialize: True, False, a number of segments, or None for only where one sample does not
            fit otherwise: see `microbatch`.
    """

    def __init__(
        self,
        model,
        size,
        *,
        limit=None,
        accumulator_dtype=None,
        loss=None,
        loop=None,
        may_fold=True,
        padding=None,
        rematerialize=False,
    ):
        self._model = model
        self.loss = loss
        self._loop = loop
        self._may_fold = may_fold
        self.padding = padding
        self._is_inert = False
        self._replays = RematerializationChoice(model, rematerialize)
        self._limit = limit
        self._dtype = arguments.accumulator_dtype(accumulator_dtype)
        self.noise: StepStatistics | None = None
        self.is_whole = size == WHOLE
        self._is_searched = size == "auto"
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

    def measure_noise(self, memory):
        """Let steps made from now on write the noise scale's averages to `noise`.

        Returns whether steps made before do something else.

        Args:
            memory: Integer >= 1; windows that the averages reach back.

        Raises:
            ValueError: The model combines tasks.
        """
        if tasks_of(self._model) is not None:
            raise ValueError(
                "NoiseScale measures the noise of one gradient: got a model with one per task. "
                "Measure the tasks one at a time, without multitask."
            )
        if self.noise is None:
            self.noise = StepStatistics("noise_scale_averages", noise_scale.SIZE)
        is_new = self.noise.memory != memory
        self.noise.memory = memory
        return is_new

    def make_train_function(self, force=False):
        """Set the model's `train_function`, in place of `keras.Model.make_train_function`."""
        model = self._model
        require_whole_windows(model)
        require_single_update(model.optimizer)
        if model.train_function is not None and not force:
            return
        if keras.config.backend() == "torch" and model.steps_per_execution > 1:
            raise ValueError(
                "`steps_per_execution` must be 1 with the PyTorch backend: got "
                f"steps_per_execution={model.steps_per_execution}. Leave it out of compile."
            )
        self._steps, self._phases = {}, {}
        runs = {
            "jax": self._run_from_iterator,
            "tensorflow": self._run_from_tensorflow_iterator,
            "torch": lambda data: self._run_batch(None, data[0], "all")[0],
        }
        require_replicas(model.variables)
        Rematerialization.require_no_scope(model)
        self._require_python_loop()
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

    def _require_python_loop(self):
        has_several = replicas.has_several(self._model.variables) and not steps.ADDS_IN_PLACE
        on_device = has_several or keras_internals.strategy_of(self._model) is not None
        if self.padding is not None and on_device:
            raise ValueError(
                "padding= cuts each batch in Python, and these replicas meet within one compiled "
                "step. Leave padding= out, or train with PyTorch's processes."
            )

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
        self._step_for(data)
        self._check_padding(state, data)
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
                self._take_less(size, error)
            else:
                self._sizes.succeeded(size, *measured(begun, logs))
                self._plan.show(self._sizes.plan)
                if size < samples:
                    self._plan.note_loss(phases.compiled_losses.whole_reason)
                self._plan.note_cells(phases.padding, data, size)
                self._plan.note_rematerialization(phases.rematerialization)
                if not step.is_settled:
                    self._steps.clear()
                return logs, state
            gc.collect()  # frees what the failed pass held, once its error is gone

    def _begin(self, state, data, samples):
        self._step_for(data)[1].require_rows(samples)

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
            self._fit_one_sample()
            self._begin(state, data, samples)
        self._plan.show(self._sizes.plan)

    def _choices(self, state, data):
        def prepare(rematerialization):
            _, step = self._make_step(rematerialization)
            step.prepare(state, data, self._sizes.size)

        return self._replays.choices(prepare)

    def _take_less(self, size, error):
        try:
            self._sizes.failed(size, error)
        except MemoryError:
            self._fit_one_sample()
        self._plan.show(self._sizes.plan)

    def _fit_one_sample(self):
        """Go on with rematerialization, or raise the `MemoryError` that is being handled."""
        if not self._replays.is_open:
            raise
        self._replays.repeat_all()
        _logger.warning(
            "One sample does not fit the memory: the backward pass runs layers again from now on."
        )
        if self._is_searched:
            self._sizes = self._searched_size()
        if not steps.ADDS_IN_PLACE:
            self._steps.clear()
            return
        for key, step in self._steps.items():  # what they have added to the momentum stays
            self._phases[key].rematerialization = self._replays.of(None)
            step.prepare_again()

    def _searched_size(self):
        return SearchedSize(self._limit, self._replays.is_open)

    def _step_for(self, data, segments=None):
        """Return the `BatchStep` for a batch like `data`, and the step that runs it.

        Args:
            data: Tuple ``(x, y, sample_weight)``.
            segments: The `Segments` that are run again, or None for those to run next.
        """
        segments = self._sizes.segments if segments is None else segments
        # Which leaves are there decides what a step computes.
        key = tuple(leaf is None for leaf in keras.tree.flatten(data))
        if self.padding is not None:
            # What layers draw for a sample depends on its padded size.
            key = (*key, *Padding(self._model, self.padding, False).sizes_of(data[0]))
        if not steps.ADDS_IN_PLACE:
            key = (*key, segments)
        if key not in self._steps:
            model = self._model
            if all(arrays.has_value(variable) for variable in model.variables[:1]):
                # In the middle of `fit` JAX has taken the values, and Keras has built the model.
                keras_internals.build(model, data)
            found = self._make_step(self._replays.of(segments))
            self._phases[key], self._steps[key] = found
        if steps.ADDS_IN_PLACE and self._replays.is_open:
            self._phases[key].rematerialization = self._replays.of(segments)
        return self._phases[key], self._steps[key]

    def _make_step(self, rematerialization):
        model = self._model
        compiled = None if model.run_eagerly else bool(model.jit_compile)
        tasks = resolved_tasks(model)
        accumulator = self._make_accumulator(tasks)
        padding = self._padding_for(compiled)
        phases = BatchStep(
            model, accumulator, tasks, self.noise, self.loss, padding, rematerialization
        )
        self._check_metrics(phases)
        loop = "host" if phases.has_own_metrics else steps.default_loop(compiled)
        return phases, steps.make_step(phases, self._loop or loop, compiled)

    def _padding_for(self, compiled):
        if self.padding is None:
            return None
        is_compiled = bool(compiled) and keras.config.backend() != "torch"
        return Padding(self._model, self.padding, is_compiled)

    def _check_padding(self, state, data):
        """Compare the first samples that have padding, with it and without."""
        if self.padding is None or self._is_inert:
            return
        model = self._model
        held = contextlib.nullcontext()
        if state is not None:
            held = keras_internals.state_in_variables(model, state)
        with held:
            padding = Padding(model, self.padding, is_compiled=False)
            self._is_inert = require_inert(model, data, padding, self.loss)

    def _check_metrics(self, phases):
        on_device = replicas.has_several(phases.weights) and keras.config.backend() != "torch"
        if phases.has_own_metrics and on_device:
            raise ValueError(
                "Several replicas cannot return what "
                f"{type(self._model).__name__}.compute_metrics makes of a micro-batch. Use metrics "
                "of compile."
            )

    def _make_accumulator(self, tasks):
        optimizer, variables = self._model.optimizer, self._model.trainable_variables
        if tasks is not None:
            return TaskBuffer(optimizer, variables, tasks, self._dtype)
        may_fold = self._may_fold and self.noise is None and not replicas.has_several(variables)
        if may_fold and MomentumFold.is_exact(optimizer, variables, self._dtype):
            return MomentumFold(optimizer, variables)
        return BatchBuffer(optimizer, variables, self._dtype)


def _meets_others(phases):
    # A loss of the whole batch is computed by all processes together, in the middle of it.
    return replicas.in_lockstep(phases.weights) or (phases.cuts and replicas.count() > 1)
