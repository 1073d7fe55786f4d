"""Exact large-batch training in small memory, for Keras 3."""

from importlib.metadata import version as _version

from tensorflow_ranger import callbacks as callbacks
from tensorflow_ranger import testing as testing
from tensorflow_ranger.batch_size.noise_scale import NoiseEstimate as NoiseEstimate
from tensorflow_ranger.batch_size.plan import MicrobatchPlan as MicrobatchPlan
from tensorflow_ranger.batch_size.rescale_for_batch import rescale_for_batch as rescale_for_batch
from tensorflow_ranger.optimizers.accumulation_schedule import (
    AccumulationSchedule as AccumulationSchedule,
)
from tensorflow_ranger.optimizers.fan_in import tag_fan_in as tag_fan_in
from tensorflow_ranger.optimizers.radam import RAdam as RAdam
from tensorflow_ranger.optimizers.ranger import Ranger as Ranger
from tensorflow_ranger.optimizers.ranger21 import Ranger21 as Ranger21
from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer as RangerOptimizer
from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping as AdaptiveGradientClipping
from tensorflow_ranger.rules.lookahead import Lookahead as Lookahead
from tensorflow_ranger.training.accumulate_gradients import (
    accumulate_gradients as accumulate_gradients,
)
from tensorflow_ranger.training.microbatch import microbatch as microbatch
from tensorflow_ranger.training.multitask import multitask as multitask
from tensorflow_ranger.training.verification.verify import Verification as Verification
from tensorflow_ranger.training.verification.verify import verify as verify

__version__ = _version("tensorflow-ranger")
