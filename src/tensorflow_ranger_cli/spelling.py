"""What a misspelt name was meant to be."""

import difflib


def nearest(name, known):
    """Return ``". Did you mean NAME?"`` with the nearest of the names, or "" where none is near.

    Args:
        name: What was given.
        known: Names that exist.
    """
    by_lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f". Did you mean {by_lower[found[0]]}?" if found else ""
