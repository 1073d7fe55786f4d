"""How Keras' layers draw random numbers. Read in Keras 3.12 to 3.15."""

import contextlib
import contextvars
import functools
import inspect

import keras
from keras.src import backend as keras_backend
from keras.src.random.seed_generator import draw_seed

from tensorflow_ranger.backend.keras_internals.replaced import Replaced
from tensorflow_ranger.backend.scoped import holding

#: The functions of `keras.random` of which each number depends on its own place alone.
PLACED = ("dropout", "normal", "randint", "truncated_normal", "uniform")

_drawer = contextvars.ContextVar("drawer", default=None)
_following = contextvars.ContextVar("following", default=None)


def drawn_seed(seed):
    """Return the numbers that a call of `keras.random` seeds its generator with.

    ``draw_seed`` takes them from a `SeedGenerator`, which moves on by one, or makes them of an int.
    Numbers that have been drawn are returned as they are.
    """
    if keras.ops.is_tensor(seed):
        return seed
    with holding(_drawer, None):
        return draw_seed(seed)


def drawing_device():
    """Return the name of the device on which Keras makes tensors on PyTorch: ``get_device``."""
    return keras_backend.torch.core.get_device()


@contextlib.contextmanager
def drawing_by(drawer, following=None):
    """Inside, in this thread, let `drawer` answer what Keras' layers ask `keras.random` for.

    Layers and `keras.random` call the functions of ``keras.src.backend.random`` by the module's
    attributes, and the other functions there draw their seeds by ``SeedGenerator.next``. While a
    scope is open in any thread these are functions that look for this thread's drawer, and call
    Keras' own where there is none; after the last scope they are Keras' own again.

    Args:
        drawer: Object with methods ``draw(name, function, arguments)``, for a function named in
            `PLACED` and a dict of all its arguments, and ``next_seed(generator, function)``; or
            None for Keras' own.
        following: Function of a `SeedGenerator` that returns its next seed, or None for Keras' own,
            which moves it on.
    """
    following = following or _following.get()
    with holding(_following, following), _replaced.scope(), holding(_drawer, drawer):
        yield


@functools.cache
def _asking(name, function):
    signature = inspect.signature(function)

    @functools.wraps(function)
    def ask(*args, **kwargs):
        drawer = _drawer.get()
        if drawer is None:
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        with holding(_drawer, None):
            return drawer.draw(name, function, bound.arguments)

    return ask


@functools.cache
def _asking_for_seed(function):
    @functools.wraps(function)
    def next_seed(generator, ordered=True):
        following, drawer = _following.get(), _drawer.get()
        own = functools.partial(
            following or functools.partial(function, ordered=ordered), generator
        )
        if drawer is None:
            return own()
        with holding(_drawer, None):
            return drawer.next_seed(generator, own)

    return next_seed


def _replacements():
    module, generator = keras_backend.random, keras.random.SeedGenerator
    functions = [(module, name, _asking(name, getattr(module, name))) for name in PLACED]
    return [*functions, (generator, "next", _asking_for_seed(generator.next))]


_replaced = Replaced(_replacements)
