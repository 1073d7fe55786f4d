"""What ``tensorflow-ranger predict`` is given for tasks on texts."""

import os
from pathlib import Path

from tensorflow_ranger_cli.errors import UsageError

SUFFIXES = (".txt", ".text", ".md")  # a name that ends so was meant to be a file's


def text_of(argument):
    """Return the text in the file that `argument` names, or `argument` itself if it has spaces.

    Raises:
        UsageError: It is neither, or holds no text.
    """
    # Unlike pathlib's, this takes a long text for no file.
    is_file = os.path.isfile(argument)  # noqa: PTH113
    try:
        text = Path(argument).read_text(encoding="utf-8") if is_file else None
    except (OSError, ValueError) as error:
        raise UsageError(f"FILE must be text in UTF-8: got {argument} ({error})") from error
    if text is None and " " in argument.strip() and not argument.endswith(SUFFIXES):
        text = argument
    if text is None or not text.strip():
        raise UsageError(
            f"FILE must be a text file, or a text of several words in quotes: got {argument!r}"
        )
    return text
