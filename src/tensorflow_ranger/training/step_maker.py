"""Makes the steps that train batches, and keeps them: one for each kind of batch."""

import keras

from tensorflow_ranger.accumulation.batch_buffer import BatchBuffer
from tensorflow_ranger.accumulation.momentum_fold import MomentumFold
from tensorflow_ranger.backend import arrays, keras_internals, replicas, steps
from tensorflow_ranger.batch_size import noise_scale
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.multitask.task_buffer import TaskBuffer
from tensorflow_ranger.optimizers.norm_gauge import NormGauge
from tensorflow_ranger.training.batch_step import BatchStep
from tensorflow_ranger.training.chunked_head.choice import HeadChoice
from tensorflow_ranger.training.model_state import tasks_of
from tensorflow_ranger.training.padding import Padding
from tensorflow_ranger.training.rematerialization.choice import RematerializationChoice
from tensorflow_ranger.training.step_statistics import StepStatistics
from tensorflow_ranger.training.task_losses import resolved_tasks
from tensorflow_ranger.training.update_norms import UpdateNorms


class StepMaker:
    """Makes a `BatchStep` and the backend's step that runs it, as `microbatch` was asked to.

    Args:
        model: The Keras model.
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
        *,
        accumulator_dtype=None,
        loss=None,
        loop=None,
        may_fold=True,
        padding=None,
        rematerialize=False,
        head_chunks=None,
    ):
        self._model = model
        self._dtype = arguments.accumulator_dtype(accumulator_dtype)
        self.loss = loss
        self._loop = loop
        self._may_fold = may_fold
        self.padding = padding
        self.replays = RematerializationChoice(model, rematerialize)
        self._heads = HeadChoice(model, loss, padding, head_chunks)
        self._options = {"rematerialize": rematerialize, "head_chunks": head_chunks}
        self.noise: StepStatistics | None = None
        self.norms: UpdateNorms | NormGauge | None = None
        self.made = {}  #: By kind of batch: pairs of a `BatchStep` and the step that runs it.

    @property
    def options(self):
        """What `microbatch` was given beside the size, as far as it decides the result."""
        return {
            "accumulator_dtype": self._dtype,
            "loss": self.loss,
            "padding": self.padding,
            **self._options,
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

    def clear(self):
        """Make all steps anew."""
        self.made = {}
        self.replays.learn_again()

    def step_for(self, data, segments):
        """Return the `BatchStep` for a batch like `data`, and the step that runs it.

        Args:
            data: Tuple ``(x, y, sample_weight)``.
            segments: The `Segments` that a search asks to run again, or None.
        """
        key = self._key_of(data, segments)
        if key not in self.made:
            model = self._model
            if all(arrays.has_value(variable) for variable in model.variables[:1]):
                # In the middle of `fit` JAX has taken the values, and Keras has built the model.
                keras_internals.build(model, data)
            self.made[key] = self.make(data, self.replays.of(segments))
        phases, step = self.made[key]
        if steps.ADDS_IN_PLACE and self.replays.searched is not None:
            phases.rematerialization = self.replays.of(segments)
        return phases, step

    def make(self, data, rematerialization):
        """Return a new `BatchStep` for a batch like `data`, and a step that runs it.

        Args:
            data: Tuple ``(x, y, sample_weight)``.
            rematerialization: `Rematerialization` of the model, or None.
        """
        model = self._model
        head, whole_head = self._heads.of(data)
        compiled = None if model.run_eagerly else bool(model.jit_compile)
        tasks = resolved_tasks(model)
        phases = BatchStep(
            model,
            self._make_accumulator(tasks),
            tasks,
            self.noise,
            self.loss,
            self._padding_for(compiled),
            rematerialization,
            self.norms,
            head,
        )
        phases.whole_head = whole_head
        self._check_metrics(phases)
        loop = "host" if phases.has_own_metrics else steps.default_loop(compiled)
        return phases, steps.make_step(phases, self._loop or loop, compiled)

    def take_less_memory(self, data, segments):
        """Make steps that need less memory for a sample from now on.

        Args:
            data: Tuple ``(x, y, sample_weight)`` of the batch on its way.
            segments: The `Segments` that it runs again, or None.

        Returns:
            What they do for that, in words, or None where nothing is left to do.
        """
        phases, step = self.step_for(data, segments)
        if self.replays.searched == "more":
            self.replays.repeat_all()
            what = "the backward pass runs layers again"
        elif phases.head is None and self._heads.divide(data):
            self.replays.forget()
            what = "logits are computed in chunks"
        else:
            return None
        self.clear()
        if steps.ADDS_IN_PLACE:  # what it has added to the momentum stays
            phases.rematerialization = self.replays.of(None)
            phases.head, phases.whole_head = self._heads.of(data)
            step.prepare_again()
            self.made[self._key_of(data, None)] = phases, step
        return what

    def _kind_of(self, data):
        # Which leaves are there decides what a step computes. Where steps are not compiled, so do
        # settings of the optimizer that are assigned between batches.
        is_live = steps.ADDS_IN_PLACE or self._model.run_eagerly
        is_linear = is_live and MomentumFold.is_linear(self._model.optimizer)
        kind = (is_linear, self.norms is None, *(leaf is None for leaf in keras.tree.flatten(data)))
        if self.padding is not None:
            # What layers draw for a sample depends on its padded size.
            x = steps.first_part(data[0])
            kind = (*kind, *Padding(self._model, self.padding, False).sizes_of(x))
        return kind

    def _key_of(self, data, segments):
        kind = self._kind_of(data)
        return kind if steps.ADDS_IN_PLACE else (*kind, segments)

    def _padding_for(self, compiled):
        if self.padding is None:
            return None
        backend = keras.config.backend()
        is_in_step = replicas.meet_in_step(self._model.variables)
        # A loop of TensorFlow's replicas takes micro-batches of any length.
        is_compiled = backend == "jax" if is_in_step else bool(compiled) and backend != "torch"
        return Padding(self._model, self.padding, is_compiled, is_in_step)

    def _check_metrics(self, phases):
        if phases.has_own_metrics and replicas.meet_in_step(phases.weights):
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
