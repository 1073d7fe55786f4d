"""Exact large-batch training in small memory, for Keras 3."""

import sys as _sys
from importlib.metadata import version as _version
from pathlib import Path as _Path

__version__ = _version("tensorflow-ranger")


def _is_command_line():
    program = _Path(next(iter(_sys.argv), "")).stem
    return program == "tensorflow-ranger" or (program == "-m" and __name__ in _sys.orig_argv)


# Keras reads its backend when it is imported, and the command line chooses one first. Everybody
# else gets the public names here, and with them their registration for Keras' saving.
if not _is_command_line():
    from tensorflow_ranger.optimizers.accumulation_steps import (
        AccumulationSchedule as AccumulationSchedule,
    )
    from tensorflow_ranger.optimizers.fan_in import tag_fan_in as tag_fan_in
    from tensorflow_ranger.optimizers.radam import RAdam as RAdam
    from tensorflow_ranger.optimizers.ranger import Ranger as Ranger
    from tensorflow_ranger.optimizers.ranger21 import Ranger21 as Ranger21
    from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer as RangerOptimizer
    from tensorflow_ranger.optimizers.rescale_for_batch import (
        rescale_for_batch as rescale_for_batch,
    )
    from tensorflow_ranger.rules.clipping import (
        AdaptiveGradientClipping as AdaptiveGradientClipping,
    )
    from tensorflow_ranger.rules.lookahead import Lookahead as Lookahead
    from tensorflow_ranger.training import callbacks as callbacks
    from tensorflow_ranger.training.accumulate_gradients import (
        accumulate_gradients as accumulate_gradients,
    )
    from tensorflow_ranger.training.microbatch import microbatch as microbatch
    from tensorflow_ranger.training.multitask import multitask as multitask
    from tensorflow_ranger.training.verify import verify as verify
