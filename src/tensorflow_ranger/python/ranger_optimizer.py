"""The founding import path: ``from tensorflow_ranger.python import ranger_optimizer``."""

from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer as RangerOptimizer
