"""Sums over the replicas of a distributed run, in the frameworks' own collectives.

A replica is a device or a process with a copy of the model and a part of the batch. Where the
framework sums gradients by itself before it shows them, there is but one replica to see.
"""

import importlib

import keras

_active = importlib.import_module(f"{__name__}.{keras.config.backend()}")

SUMS_METRICS = _active.SUMS_METRICS

are_alike = _active.are_alike
begin_alike = _active.begin_alike
copies = _active.copies
count = _active.count
has_several = _active.has_several
in_lockstep = _active.in_lockstep
index = _active.index
loss_divisor = _active.loss_divisor
mismatch = _active.mismatch
run_if = _active.run_if
skip_reduction = _active.skip_reduction
sum_over = _active.sum_over
total = _active.total
