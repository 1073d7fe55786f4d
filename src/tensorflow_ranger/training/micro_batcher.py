"""The part of `microbatch` that stays with a model: it cuts, retries, measures and remembers."""

import contextlib
import functools
import gc
import logging
import sys
import time

import keras

from tensorflow_ranger import backend
from tensorflow_ranger.accumulation.fused import BatchBuffer, MomentumFold
from tensorflow_ranger.backend import keras_internals, replicas, steps
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.batch_size.plan import Candidate, MicrobatchPlan, format_bytes
from tensorflow_ranger.batch_size.search import Search
from tensorflow_ranger.distribution.merging import merged_gradients, require_replicas
from tensorflow_ranger.multitask.task_buffer import TaskBuffer
from tensorflow_ranger.optimizers import arguments
from tensorflow_ranger.training.model_state import attached, tasks_of
from tensorflow_ranger.training.passes import Passes
from tensorflow_ranger.training.step_statistics import StepStatistics
from tensorflow_ranger.training.task_losses import (
    require_single_update,
    require_whole_windows,
    resolved_tasks,
)

_logger = logging.getLogger("tensorflow_ranger")

WHOLE = sys.maxsize  # samples: each batch is one micro-batch, while it fits the memory
GROW_AFTER = 100  # batches in a smaller size before a larger one is tried again


class MicroBatcher:
    """Gives a model a train function that runs each batch in micro-batches.

    Args:
        model: The Keras model.
        size: Samples per micro-batch, "auto", or `WHOLE`.
        limit: Bytes that training may need, or None.
        loop: "device", "host" or None.
        accumulator: "buffer", "fold" or None.
        accumulator_dtype: Name of a dtype, or None.
    """

    def __init__(self, model, size, *, limit, loop, accumulator, accumulator_dtype):
        self._model = model
        self._loop = loop
        self._limit = limit
        self._accumulator = accumulator
        self._dtype = arguments.accumulator_dtype(accumulator_dtype)
        self.noise: StepStatistics | None = None
        self._search: Search | None = None
        self.is_whole = size == WHOLE
        self._asked = None if size == "auto" else int(size)
        self._size: int = self._asked or 1
        self._batches_until_growth: int | None = None
        self._has_grown, self._patience = False, GROW_AFTER
        self._show(_first_plan(self._asked))

    @staticmethod
    def of(model):
        """Return the `MicroBatcher` that trains `model`, or None."""
        batcher = attached(model, "micro_batcher")
        makes = vars(model).get("make_train_function")  # which a user may have replaced since
        return batcher if batcher is not None and makes == batcher.make_train_function else None

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
        self._steps = {}
        runs = {
            "jax": self._run_from_iterator,
            "tensorflow": self._run_from_tensorflow_iterator,
            "torch": lambda data: self._run_batch(None, data[0], "all")[0],
        }
        require_replicas(model.variables)
        if self._asked is None and replicas.in_lockstep(model.variables):
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
        rows = _rows_known_to_graph(iterator, self._model)
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
        samples = _samples(data)
        step = self._step_for(data)
        step.require_rows(samples)
        if self._asked is None and self._search is None:
            self._begin_search(step, state, data, samples)
        rows = samples if rows == "all" else rows
        while True:
            size = min(self._size, samples)
            begun = self._begin_measuring(samples)
            try:
                with self._merged():
                    logs, state = step.run(state, data, size, rows)
            except Exception as error:
                if not steps.is_out_of_memory(error):
                    raise
                if replicas.in_lockstep(self._model.variables):
                    raise MemoryError(
                        f"Out of memory with micro-batches of {size} on this process, and others "
                        "run the same size: use a smaller one."
                    ) from error
                self._fall_back(size, error)
            else:
                self._end_measuring(begun, size, logs)
                if not step.is_settled:
                    self._steps.clear()
                return logs, state
            gc.collect()  # frees what the failed pass held, once its error is gone

    def _step_for(self, data):
        # Which leaves are there decides what a step computes.
        key = tuple(leaf is None for leaf in keras.tree.flatten(data))
        if key not in self._steps:
            model = self._model
            if all(backend.has_value(variable) for variable in model.variables[:1]):
                # In the middle of `fit` JAX has taken the values, and Keras has built the model.
                keras_internals.build(model, data)
            compiled = None if model.run_eagerly else bool(model.jit_compile)
            tasks = resolved_tasks(model)
            passes = Passes(model, self._make_accumulator(tasks), tasks, self.noise)
            self._check_loop(passes)
            loop = "host" if passes.has_own_metrics else steps.default_loop(compiled)
            self._steps[key] = steps.make_step(passes, self._loop or loop, compiled)
        return self._steps[key]

    def _check_loop(self, passes):
        on_device = replicas.has_several(passes.weights) and keras.config.backend() != "torch"
        if self._loop == "host" and on_device:
            raise ValueError(
                "loop='host' is for one replica: got several, which meet within one compiled step. "
                "Use loop=None."
            )
        if passes.has_own_metrics and (self._loop == "device" or on_device):
            where = "several replicas" if on_device else "loop='device'"
            raise ValueError(
                f"{where} cannot return what {type(self._model).__name__}.compute_metrics makes of "
                f"a micro-batch. {'Use metrics of compile.' if on_device else 'Use loop=None.'}"
            )

    def _make_accumulator(self, tasks):
        optimizer, variables = self._model.optimizer, self._model.trainable_variables
        obstacle = MomentumFold.obstacle(optimizer, variables, self._dtype)
        if replicas.has_several(variables):
            obstacle = "several replicas would each hold the momentum"
        if self.noise is not None:
            obstacle = "NoiseScale looks at the gradient itself"
        if tasks is not None:
            obstacle = "the tasks' gradients are combined first"
        if self._accumulator == "fold" and obstacle is not None:
            raise ValueError(
                f"accumulator='fold' is exact for SGD with momentum alone: {obstacle}. "
                "Use accumulator=None."
            )
        if tasks is not None:
            return TaskBuffer(optimizer, variables, tasks, self._dtype)
        if self._accumulator == "buffer" or obstacle is not None:
            return BatchBuffer(optimizer, variables, self._dtype)
        return MomentumFold(optimizer, variables)

    def _fall_back(self, size, error):
        if size == 1:
            raise MemoryError(
                f"One sample at a time does not fit the memory: {error}. "
                "Use a smaller model, shorter samples, or a larger machine."
            ) from error
        _logger.warning(
            "Out of memory with micro-batches of %d: the batch is run again with %d.",
            size,
            size // 2,
        )
        search = self._search
        if search is not None and not search.done:
            search.refuse(size)
            self._take_from(search)
            return
        if self._has_grown:
            self._has_grown, self._patience = False, 2 * self._patience
        self._batches_until_growth = self._patience
        reason = f"{size // 2} samples at a time are used: {size} ran out of memory."
        self._resize(size // 2, reason, Candidate(size, fits=False))

    def _grow(self):
        if self._batches_until_growth is None:
            return
        self._batches_until_growth -= 1
        if self._batches_until_growth == 0:
            wanted = self._asked or (self._search and self._search.best) or self._size
            self._has_grown = True
            self._batches_until_growth = self._patience if 2 * self._size < wanted else None
            size = min(2 * self._size, wanted)
            self._resize(size, f"{size} samples at a time are tried again.", Candidate(size))

    def _resize(self, size, reason, learned):
        self._size = size
        looked_at = (Candidate(size), *self.plan.candidates, learned)
        known = {candidate.size: candidate for candidate in looked_at}
        candidates = tuple(known[size] for size in sorted(known))
        self._show(MicrobatchPlan(self.plan.batch, candidates, size, reason))

    def _begin_search(self, step, state, data, samples):
        backend.reset_peak_memory()
        memory_of = None
        if steps.KNOWS_MEMORY:
            memory_of = functools.partial(step.memory, state, data)
        held = backend.peak_memory() or 0
        if memory_of is None and self._limit is not None and held >= self._limit:
            raise MemoryError(
                f"memory_limit is {format_bytes(self._limit)}, and {format_bytes(held)} are in use "
                "before the first batch: by Python, the framework, the model and the data. Raise "
                "it by what a step may need beside these."
            )
        self._search = Search(samples, self._limit, memory_of, held)
        self._batch = samples
        self._take_from(self._search)

    def _take_from(self, search):
        if search.size is None:
            smallest = search.plan().candidates[0]
            needed = "more" if smallest.memory is None else format_bytes(smallest.memory)
            raise MemoryError(
                f"memory_limit must hold one sample at a time: got {format_bytes(self._limit)}, "
                f"and {smallest.size} need {needed}. Raise it, or use a smaller model."
            )
        self._size = search.size
        self._show(search.plan())
        if search.done:
            _logger.info("%s", self.plan.reason)

    def _begin_measuring(self, samples):
        if self._search is None or self._search.done or samples != self._batch:
            return None
        backend.reset_peak_memory()
        return time.perf_counter()

    def _end_measuring(self, begun, size, logs):
        search = self._search
        if begun is None or search is None:
            self._grow()
            return
        backend.wait(next(iter(keras.tree.flatten(logs))))
        search.record(size, time.perf_counter() - begun, backend.peak_memory())
        self._take_from(search)

    def _show(self, plan):
        self.plan = plan
        self._model.microbatch_plan = plan


def _first_plan(asked):
    if asked == WHOLE:
        return MicrobatchPlan(None, (), None, "Each batch is one micro-batch.")
    if asked is None:
        return MicrobatchPlan(None, (), None, "Nothing has been measured yet.")
    return MicrobatchPlan(None, (Candidate(asked),), asked, "The size was given.")


def _samples(data):
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    counts = {steps.rows(leaf) for leaf in leaves}
    if len(counts) > 1 or counts == {-1}:
        raise ValueError(
            "The arrays of a batch must have one leading axis, its samples: got shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}."
        )
    return int(counts.pop())


def _rows_known_to_graph(iterator, model):
    # Keras weighs the losses of several outputs by the batch's size where its graph knows it, and
    # each batch alike where it does not: its History is to be the same.
    spec = getattr(iterator, "element_spec", None)
    if spec is None or model.run_eagerly:
        return "all"
    if replicas.has_several(model.variables):
        return None
    shapes = [getattr(leaf, "shape", None) for leaf in keras.tree.flatten(spec)]
    return next(shape for shape in shapes if shape is not None)[0]
