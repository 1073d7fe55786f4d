"""Training steps that run a batch in micro-batches, one module per backend.

Each module gives `make_step`, whose steps run the `Phases` of a batch, and the functions that
those call: `add_gradients` and `current_values`.
"""

import importlib

import keras

from tensorflow_ranger.backend.out_of_memory import is_out_of_memory as is_out_of_memory

_active = importlib.import_module(f"{__name__}.{keras.config.backend()}")

KNOWS_MEMORY = _active.KNOWS_MEMORY

add_gradients = _active.add_gradients
current_values = _active.current_values
default_loop = _active.default_loop
filled = _active.filled
make_step = _active.make_step
rows = _active.rows
trainer_overrides = _active.trainer_overrides
without_optionals = _active.without_optionals
