"""Runs a command, and turns its errors and warnings into lines."""

import sys
import warnings

from tensorflow_ranger_cli.errors import CommandError


def main(arguments=None):
    """Run the command line.

    Args:
        arguments: List of strings. None takes those of the process.

    Returns:
        The exit code: 0, 1 for something missing or broken, 2 for wrong usage.
    """
    try:
        import typer

        from tensorflow_ranger_cli.app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        return _failed(
            "the command line needs typer, which is not installed. "
            'Run: pip install "tensorflow-ranger[examples]"',
            CommandError.exit_code,
        )
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return app(arguments, prog_name="tensorflow-ranger", standalone_mode=False) or 0
    except CommandError as error:
        return _failed(str(error), error.exit_code)
    except typer.TyperException as error:
        message = error.format_message().rstrip(".")
        return _failed(f"{message} (see tensorflow-ranger --help)", error.exit_code)


def _warn(message, *_):
    print(f"Warning: {message}", file=sys.stderr)


def _failed(message, exit_code):
    print("Error:", " ".join(message.split()), file=sys.stderr)
    return exit_code
