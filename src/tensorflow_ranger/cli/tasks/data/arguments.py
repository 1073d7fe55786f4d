"""What ``tensorflow-ranger predict`` is given for tasks on texts."""

from pathlib import Path

from tensorflow_ranger.cli.errors import UsageError


def text_of(argument):
    """Return the text in the file that `argument` names, or `argument` itself if it has spaces.

    Raises:
        UsageError: It is neither, or holds no text.
    """
    path = Path(argument)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UsageError(f"FILE must be text in UTF-8: got {argument} ({error})") from error
    if text is None and " " in argument.strip():
        text = argument
    if text is None or not text.strip():
        raise UsageError(
            f"FILE must be a text file, or a text of several words in quotes: got {argument!r}"
        )
    return text
