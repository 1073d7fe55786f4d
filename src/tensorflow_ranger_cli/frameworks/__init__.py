"""What the application asks of the frameworks: to join processes and devices, and their memory.

Each module beside `base` gives the same names for one Keras backend, and only that of the active
backend is imported. Keras must have its backend before this room is imported.
"""

import importlib

import keras

_active = importlib.import_module(f"{__name__}.{keras.config.backend()}")

Engine = _active.Engine
devices = _active.devices
peak_memory = _active.peak_memory
reset_peak_memory = _active.reset_peak_memory
