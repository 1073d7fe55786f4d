"""How Keras' layers draw random numbers. Read in Keras 3.12 to 3.15."""

import contextlib
import contextvars
import functools
import inspect
import threading

import keras
from keras.src import backend as keras_backend
from keras.src.random.seed_generator import draw_seed

#: The functions of `keras.random` of which each number depends on its own place alone.
PLACED = ("dropout", "normal", "randint", "truncated_normal", "uniform")

_drawer = contextvars.ContextVar("drawer", default=None)
_following = contextvars.ContextVar("following", default=None)
_lock = threading.Lock()
_replaced = []  # of open scopes, in all threads: for each, what Keras had
_open_scopes = 0


def drawn_seed(seed):
    """Return the numbers that a call of `keras.random` seeds its generator with.

    ``draw_seed`` takes them from a `SeedGenerator`, which moves on by one, or makes them of an int.
    Numbers that have been drawn are returned as they are.
    """
    if keras.ops.is_tensor(seed):
        return seed
    with _drawn_by(None):
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
    _install()
    token = _following.set(following or _following.get())
    try:
        with _drawn_by(drawer):
            yield
    finally:
        _following.reset(token)
        _uninstall()


@contextlib.contextmanager
def _drawn_by(drawer):
    token = _drawer.set(drawer)
    try:
        yield
    finally:
        _drawer.reset(token)


def _install():
    global _open_scopes
    with _lock:
        _open_scopes += 1
        if _open_scopes > 1:
            return
        module, generator = keras_backend.random, keras.random.SeedGenerator
        for name in PLACED:
            _replaced.append((module, name, getattr(module, name)))
            setattr(module, name, _asking(name, getattr(module, name)))
        _replaced.append((generator, "next", generator.next))
        generator.next = _asking_for_seed(generator.next)


def _uninstall():
    global _open_scopes
    with _lock:
        _open_scopes -= 1
        while not _open_scopes and _replaced:
            setattr(*_replaced.pop())


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
        with _drawn_by(None):
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
        with _drawn_by(None):
            return drawer.next_seed(generator, own)

    return next_seed
