"""How a command ends when it cannot do what it was asked."""


class CommandError(Exception):
    """Ends the command with one line on stderr, which says what to do.

    Args:
        message: What was got, what was expected, what to do.
    """

    exit_code = 1
    label = "Error: "


class UsageError(CommandError):
    """The command was asked for something that it cannot mean."""

    exit_code = 2


class Stopped(CommandError):
    """Ctrl-C ended the command."""

    exit_code = 130  # what shells expect of a program that Ctrl-C ended
    label = ""

    def __init__(self, remedy=""):
        super().__init__(f"Stopped. {remedy}".rstrip())
