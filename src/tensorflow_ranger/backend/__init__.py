"""The only door to the frameworks.

Each module beside this file gives the same functions for one Keras backend. Only the module of
the active backend is imported, so a JAX or PyTorch user never pays for TensorFlow.
"""

import importlib

import keras

NAMES = ("tensorflow", "jax", "torch")

if keras.config.backend() not in NAMES:
    raise ImportError(
        f"tensorflow_ranger runs on the Keras backends {', '.join(NAMES)}: "
        f"got {keras.config.backend()!r}. Set KERAS_BACKEND to one of them before importing Keras."
    )

_active = importlib.import_module(f"{__name__}.{keras.config.backend()}")

KEEPS_ALL_ASSIGNMENTS = _active.KEEPS_ALL_ASSIGNMENTS

add_scaled = _active.add_scaled
all_finite = _active.all_finite
apply = _active.apply
blend = _active.blend
blend_squares = _active.blend_squares
copied = _active.copied
descend = _active.descend
devices = _active.devices
divide = _active.divide
foreign_normalizations = _active.foreign_normalizations
foreign_state = _active.foreign_state
gradients_of = _active.gradients_of
has_value = _active.has_value
initial_value = _active.initial_value
is_sparse = _active.is_sparse
kept = _active.kept
known_means = _active.known_means
peak_memory = _active.peak_memory
plus = _active.plus
random_state = _active.random_state
reset_peak_memory = _active.reset_peak_memory
rows = _active.rows
run_if = _active.run_if
squared_norm = _active.squared_norm
static_value = _active.static_value
supports_dtype = _active.supports_dtype
times = _active.times
version = _active.version
wait = _active.wait
zero = _active.zero
