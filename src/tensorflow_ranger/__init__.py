"""Exact large-batch training in small memory, for Keras 3."""

from importlib.metadata import version as _version

from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer as RangerOptimizer

__version__ = _version("tensorflow-ranger")
