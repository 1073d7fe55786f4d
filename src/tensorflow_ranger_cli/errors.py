"""How a command ends when it cannot do what it was asked."""

STOPPED = 130  # what shells expect of a program that Ctrl-C ended


class CommandError(Exception):
    """Ends the command with one line on stderr, which says what to do.

    Args:
        message: What was got, what was expected, what to do.
    """

    exit_code = 1


class UsageError(CommandError):
    """The command was asked for something that it cannot mean."""

    exit_code = 2
