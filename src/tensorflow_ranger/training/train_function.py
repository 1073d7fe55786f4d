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
from tensorflow_ranger.training.chunked_head.finding import found_head
from tensorflow_ranger.training.fit_checks import require_same_variables, require_targets
from tensorflow_ranger.training.model_state import attached, tasks_of
from tensorflow_ranger.training.padding import Padding
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
        head_chunks: In how many chunks the logits of a micro-batch are computed, or None to decide:
            see `microbatch`.
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
        head_chunks=None,
    ):
        self._model = model
        self.loss = loss
        self._loop = loop
        self._may_fold = may_fold
        self.padding = padding
        self._is_inert = False
        self._rematerialize = rematerialize
        self._head_chunks = head_chunks
        self._needs_head = False  # in chunks, for one sample to fit
        self._whole_reasons = {}  # why the heads of `_steps` stay whole
        self._limit = limit
        self._dtype = arguments.accumulator_dtype(accumulator_dtype)
        self.noise: StepStatistics | None = None
        self.norms: StepStatistics | None = None
        self.is_whole = size == WHOLE
        self._is_searched = size == "auto"
        self._sizes = SearchedSize(limit) if self._is_searched else FixedSize(size)
        self._plan = ShownPlan(model)
        self._plan.show(self._sizes.plan)

    @staticmethod
    def of(model):
        """Return the `TrainFunction` that trains `model`, or None."""
        installed = attached(model, "microbatch")
        makes = vars(model).get("make_train_function")  # which a user may have replaced since
        is_ours = installed is not None and makes == installed.make_train_function
        return installed if is_ours else None

    @property
    def options(self):
        """What `microbatch` was given beside the size, as far as it decides the result."""
        return {
            "accumulator_dtype": self._dtype,
            "loss": self.loss,
            "padding": self.padding,
            "rematerialize": self._rematerialize,
            "head_chunks": self._head_chunks,
        }

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
            require_same_variables(model, self._variables)
            return
        self._variables = list(model.trainable_variables)
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
        require_targets(self._model, data)
        self._step_for(data)
        self._check_padding(state, data)
        while True:
            phases, step = self._step_for(data)
            step.require_rows(samples)
            self._begin(step, state, data, samples)
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
                self._sizes.succeeded(size, *measured(begun, logs))
                self._plan.show(self._sizes.plan)
                if not (self._is_searched or self.is_whole or self.padding is not None):
                    self._plan.warn_of_no_split(size, samples)
                if size < samples:
                    self._plan.note_loss(phases.compiled_losses.whole_reason)
                self._plan.note_cells(phases.padding, data, size)
                self._plan.note_rematerialization(phases.rematerialization)
                self._plan.note_head(self._note_on_head(phases, data))
                if not step.is_settled:
                    self._steps.clear()
                return logs, state
            gc.collect()  # frees what the failed pass held, once its error is gone

    def _begin(self, step, state, data, samples):
        memory_of = functools.partial(step.memory, state, data) if steps.KNOWS_MEMORY else None
        try:
            self._sizes.begin(samples, bytes_in_use, memory_of)
        except MemoryError:
            self._fit_one_sample(data)
            _, step = self._step_for(data)
            self._begin(step, state, data, samples)
        self._plan.show(self._sizes.plan)

    def _take_less(self, size, error, data):
        try:
            self._sizes.failed(size, error)
        except MemoryError:
            self._fit_one_sample(data)
        self._plan.show(self._sizes.plan)

    def _fit_one_sample(self, data):
        """Go on in less memory, or raise the `MemoryError` that is being handled."""
        phases, step = self._step_for(data)
        if self._rematerialize is None:
            self._rematerialize, what = True, "the backward pass runs layers again"
        elif phases.head is None and self._may_chunk_head(data):
            self._needs_head, what = True, "logits are computed in chunks"
        else:
            raise
        _logger.warning("One sample does not fit the memory: %s from now on.", what)
        if self._is_searched:
            self._sizes = SearchedSize(self._limit)
        self._steps.clear()
        if steps.ADDS_IN_PLACE:  # what it has added to the momentum stays
            phases.rematerialization = self._make_rematerialization()
            phases.head = self._make_head(data)
            step.prepare_again()
            self._steps[self._key_of(data)] = step

    def _make_rematerialization(self):
        if self._rematerialize in (None, False):
            return None
        count = None if self._rematerialize is True else int(self._rematerialize)
        return Rematerialization(self._model, count)

    def _may_chunk_head(self, data):
        if self._head_chunks is not None:
            return False
        return self._found_head(data, is_forced=True)[0] is not None

    def _make_head(self, data):
        """Return the `ChunkedHead` of the model, or None where it stays whole.

        Raises:
            ValueError: Chunks were asked for, and the head cannot be divided.
        """
        count = self._head_chunks
        if count == 1:
            return None
        is_forced = count is not None or self._needs_head
        head, reason = self._found_head(data, is_forced)
        if count is not None and head is None:
            raise ValueError(
                f"head_chunks={count} divides the logits of a micro-batch, and they must stay "
                f"whole, for {reason}. Leave head_chunks out."
            )
        self._whole_reasons[self._key_of(data)] = reason
        return head

    def _found_head(self, data, is_forced):
        return found_head(
            self._model,
            data,
            tasks=resolved_tasks(self._model),
            loss=self.loss,
            padding=self.padding,
            count=self._head_chunks,
            is_forced=is_forced,
        )

    def _note_on_head(self, phases, data):
        reason = self._whole_reasons.get(self._key_of(data))
        if phases.head is not None:
            return phases.head.summary
        return None if reason is None else f"All logits are computed at once, for {reason}."

    def _key_of(self, data):
        # Which leaves are there decides what a step computes.
        key = (self.norms is None, *(leaf is None for leaf in keras.tree.flatten(data)))
        if self.padding is not None:
            # What layers draw for a sample depends on its padded size.
            key = (*key, *Padding(self._model, self.padding, False).sizes_of(data[0]))
        return key

    def _step_for(self, data):
        key = self._key_of(data)
        if key not in self._steps:
            model = self._model
            if all(arrays.has_value(variable) for variable in model.variables[:1]):
                # In the middle of `fit` JAX has taken the values, and Keras has built the model.
                keras_internals.build(model, data)
            compiled = None if model.run_eagerly else bool(model.jit_compile)
            tasks = resolved_tasks(model)
            accumulator = self._make_accumulator(tasks)
            padding = self._padding_for(compiled)
            phases = BatchStep(
                model,
                accumulator,
                tasks,
                self.noise,
                self.loss,
                padding,
                self._make_rematerialization(),
                self.norms,
                self._make_head(data),
            )
            self._check_metrics(phases)
            loop = "host" if phases.has_own_metrics else steps.default_loop(compiled)
            self._steps[key] = steps.make_step(phases, self._loop or loop, compiled)
            self._phases[key] = phases
        return self._phases[key], self._steps[key]

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
        may_fold = self._may_fold and self.noise is None and self.norms is None
        may_fold = may_fold and not replicas.has_several(variables)
        if may_fold and MomentumFold.is_exact(optimizer, variables, self._dtype):
            return MomentumFold(optimizer, variables)
        return BatchBuffer(optimizer, variables, self._dtype)


def _meets_others(phases):
    # A loss of the whole batch is computed by all processes together, in the middle of it.
    return replicas.in_lockstep(phases.weights) or (phases.cuts and replicas.count() > 1)
