"""Finds tasks by their names, in whatever installed package declares them.

A package declares a task as an entry point of the group `GROUP`: its name is the task's, and its
value says where the `Task` stands, ``module:TASK``. No module of a task is imported before its task
is asked for.
"""

import functools
from importlib import metadata

from tensorflow_ranger_cli import spelling
from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.tasks.task import Task

GROUP = "tensorflow_ranger.tasks"
DEFAULT = "digits"


def names():
    """Return the names of all tasks, the default first."""
    return sorted(_declared(), key=lambda name: (name != DEFAULT, name))


def find(name):
    """Return the `Task` of that name.

    Raises:
        UsageError: There is none.
        CommandError: Several packages declare it; what is declared cannot be imported, or is no
            task of that name; no package declares any task.
    """
    known = names()
    if not known:
        raise CommandError(
            "no installed package declares a task: got a tensorflow-ranger of another version than "
            "its files. Run in a checkout: pip install --editable ., else: "
            "pip install --force-reinstall tensorflow-ranger"
        )
    if name not in known:
        raise UsageError(
            f"TASK must be one of {', '.join(known)}: got {name}{spelling.nearest(name, known)}"
        )
    entries = _declared()[name]
    if len(entries) > 1:
        raise CommandError(
            f"the task {name} must be declared by one package: got "
            f"{', '.join(map(_package, entries))}. Uninstall all but one of them"
        )
    return _loaded(entries[0])


@functools.cache
def _declared():
    """Return the entry points by name, each with a list: one is as it should be."""
    found = {}
    for entry in metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def _package(entry):
    return entry.dist.name


def _loaded(entry):
    package = _package(entry)
    remedy = f"Upgrade {package}, or uninstall it"
    try:
        task = entry.load()
    except Exception as error:  # whatever another package's module raises
        raise CommandError(
            f"the task {entry.name} of the package {package} cannot be imported from "
            f"{entry.value}: got {type(error).__name__}, {error}. {remedy}"
        ) from error
    if not isinstance(task, Task):
        raise CommandError(
            f"the entry point {entry.name} of the package {package} must name a Task: got "
            f"{type(task).__name__} from {entry.value}. {remedy}"
        )
    if task.name != entry.name:
        raise CommandError(
            f"the entry point {entry.name} of the package {package} must have its task's name: got "
            f"a task named {task.name} from {entry.value}. {remedy}"
        )
    return task
