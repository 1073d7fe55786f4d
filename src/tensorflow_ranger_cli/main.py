"""Runs a command, and turns its errors and warnings into lines."""

import sys
import warnings

from tensorflow_ranger_cli.errors import CommandError, Stopped, UsageError

PROGRAM = "tensorflow-ranger"


def main(arguments=None):
    """Run the command line.

    Args:
        arguments: List of strings. None takes those of the process.

    Returns:
        The exit code: 0, 1 for something missing or broken, 2 for wrong usage, 130 for Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return _run(arguments)
    except KeyboardInterrupt:
        return _ended(Stopped())
    except CommandError as error:
        return _ended(error)


def _run(arguments):
    try:
        import typer

        from tensorflow_ranger_cli.app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        raise CommandError(
            "the command line needs typer, which is not installed. "
            'Run: pip install "tensorflow-ranger[examples]"'
        ) from error
    try:
        code = app(arguments, prog_name=PROGRAM, standalone_mode=False) or 0
    except typer.TyperException as error:
        message, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        command = context.command_path if context else PROGRAM
        raise UsageError(f"{message} (see {command} --help)") from error
    if code == Stopped.exit_code:  # typer makes this of KeyboardInterrupt
        raise Stopped
    return code


def _warn(message, *_):
    print(f"Warning: {message}", file=sys.stderr)


def _ended(error):
    print(f"{error.label}{' '.join(str(error).split())}", file=sys.stderr)
    # Python notes an interrupt within an `exec` of text, however it is caught later, and kills the
    # process by the signal at its end. The next `exec` takes the note back.
    exec("")
    return error.exit_code
