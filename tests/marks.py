"""Marks that several files give to some of their cases."""

import keras
import pytest

#: For a test that hardly depends on the backend: the first one runs it in every suite, the others
#: in the thorough run.
first = pytest.mark.first

#: For a test that builds a `keras.optimizers.MultiOptimizer`, which Keras 3.12 does not have.
needs_multi_optimizer = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="this version of Keras has none"
)


def thorough_but(quick, values):
    """Return `values` as parameters, of which all but those in `quick` are marked as thorough."""
    return _marked_but(quick, values, pytest.mark.thorough)


def first_but(everywhere, values):
    """Return `values` as parameters, of which all but those in `everywhere` are marked `first`."""
    return _marked_but(everywhere, values, first)


def _marked_but(plain, values, mark):
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=[] if value in plain else [mark],
        )
        for value in values
    ]
