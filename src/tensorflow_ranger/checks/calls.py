"""Errors that show the right call: for wrong arguments, and for a callback given as a class."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import keras

P = ParamSpec("P")
R = TypeVar("R")


def called_as(example: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of a function, whose errors about arguments show how to call it.

    Args:
        example: A call of the function.
    """

    def decorator(function):
        parameters = inspect.signature(function).parameters
        by_position = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

        @functools.wraps(function)
        def checked(*args, **kwargs):
            name = function.__name__
            if len(args) > len(by_position):
                first = ", ".join(parameter.name for parameter in by_position)
                raise TypeError(
                    f"{name} takes {first} by position: got {len(args)} arguments. Call it as "
                    f"{example}."
                )
            for given in kwargs:
                if given not in parameters:
                    raise TypeError(
                        f"{name} has no argument {given!r}.{_nearest(given, parameters)} Call it "
                        f"as {example}."
                    )
            return function(*args, **kwargs)

        return checked

    return decorator


def made_as(example: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of `set_model`, whose error tells how to make the callback.

    Keras calls the class' method with the model alone where it was given the class.

    Args:
        example: A call of the class.
    """

    def decorator(set_model):
        @functools.wraps(set_model)
        def checked(*args, **kwargs):
            if not isinstance(args[0], keras.callbacks.Callback):
                name = example.partition("(")[0]
                raise TypeError(
                    f"callbacks must hold objects: got the class {name}. Write {example}."
                )
            return set_model(*args, **kwargs)

        return checked

    return decorator


def _nearest(given, names):
    within = [name for name in names if name in given]
    found = within or difflib.get_close_matches(given, names, n=1)
    return f" Did you mean {found[-1]}?" if found else ""
