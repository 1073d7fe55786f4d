"""Exact large-batch training in small memory, for Keras 3."""

import sys as _sys
from importlib.metadata import version as _version
from traceback import walk_stack as _walk_stack

__version__ = _version("tensorflow-ranger")


def _is_imported_for_the_command_line():
    """Return whether the command line is about to start, and has yet to choose Keras' backend.

    Its script imports its own package first. ``python -m`` imports this package to find
    ``__main__``, which `runpy` looks for.
    """
    if "keras" in _sys.modules:
        return False
    return "tensorflow_ranger_cli" in _sys.modules or any(
        frame.f_globals.get("__name__") == "runpy"
        and frame.f_locals.get("mod_name") == f"{__name__}.__main__"
        for frame, _ in _walk_stack(None)
    )


# Importing the public names imports Keras, which reads its backend then, and registers the
# optimizers for Keras' saving. The command line chooses a backend first and reloads this package.
if not _is_imported_for_the_command_line():
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
