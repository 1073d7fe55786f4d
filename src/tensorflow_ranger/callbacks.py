"""The callbacks: what `fit` takes in its `callbacks`."""

from tensorflow_ranger.optimizers.accumulation_schedule import (
    AccumulationSchedule as AccumulationSchedule,
)
from tensorflow_ranger.training.gradient_norm import GradientNorm as GradientNorm
from tensorflow_ranger.training.noise_scale import NoiseScale as NoiseScale
from tensorflow_ranger.training.task_conflicts import TaskConflicts as TaskConflicts
