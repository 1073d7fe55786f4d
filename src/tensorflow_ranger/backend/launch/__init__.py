"""Joins the processes of a distributed run, and the devices of one, for training together.

Each module gives an `Engine` for one Keras backend. It is the one place where the library starts
what else its users start by themselves.
"""

import importlib

import keras

_active = importlib.import_module(f"{__name__}.{keras.config.backend()}")

Engine = _active.Engine
