"""The entry point of ``tensorflow-ranger`` and ``python -m tensorflow_ranger``."""


def main(arguments=None):
    """Run the command line.

    Args:
        arguments: List of strings. None takes those of the process.

    Returns:
        The exit code: 0, 1 for something missing or broken, 2 for wrong usage.
    """
    # The library's package defers its public names, since this package is imported already.
    from tensorflow_ranger.cli.main import main as run

    return run(arguments)
