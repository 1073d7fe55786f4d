"""Marks that several files give to some of their cases."""

import pytest


def thorough_but(quick, values):
    """Return `values` as parameters, of which all but those in `quick` are marked as thorough."""
    return [
        pytest.param(value, marks=[] if value in quick else [pytest.mark.thorough])
        for value in values
    ]
