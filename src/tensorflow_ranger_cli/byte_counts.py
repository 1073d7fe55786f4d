"""Numbers of bytes, as users write and read them."""

from tensorflow_ranger_cli.errors import UsageError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parsed(option, text):
    """Return the number of bytes that an option gives, such as ``"4GB"`` or ``"512 MiB"``.

    Args:
        option: Name of the option.
        text: Its value.

    Raises:
        UsageError: It is no number of bytes, or less than a megabyte: no training fits that, so
            the unit was left out.
    """
    upper = text.strip().upper()
    number = upper.rstrip("KMGTIB ")
    unit = upper[len(number) :].strip()
    try:
        count = int(float(number) * _UNITS[unit or "B"])
    except (KeyError, OverflowError, ValueError):
        count = None
    if count is None or count < _UNITS["MB"]:
        meant = "" if count is None or unit else f", which is {count} bytes"
        raise UsageError(
            f"{option} must be at least 1 MB, as a number of bytes or as a text with a unit, such "
            f"as '4GB' or '512MiB': got {text!r}{meant}."
        )
    return count


def in_words(count):
    """Return `count` bytes in words, such as ``"1.5 GB"``."""
    for unit in ("TB", "GB", "MB", "KB"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.1f} {unit}"
    return f"{count} B"
