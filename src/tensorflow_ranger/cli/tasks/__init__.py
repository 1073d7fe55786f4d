"""What the command line can train: one file per task, found by its name."""

import importlib
import pkgutil

from tensorflow_ranger.cli import spelling
from tensorflow_ranger.cli.errors import UsageError

DEFAULT = "digits"


def names():
    """Return the names of all tasks, the default first."""
    modules = [module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg]
    return sorted((name.replace("_", "-") for name in modules), key=lambda n: (n != DEFAULT, n))


def find(name):
    """Return the `Task` of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in names():
        raise UsageError(
            f"TASK must be one of {', '.join(names())}: got {name}{spelling.nearest(name, names())}"
        )
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK
