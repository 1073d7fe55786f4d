"""Which losses make a task, and how the tasks' gradients become one."""

from tensorflow_ranger.multitask.combinations import COMBINATIONS


class Tasks:
    """The tasks of a model.

    Args:
        combine: Name of one of `COMBINATIONS`.
        members: Dict from a task's name to the list of its losses' names, or None for a task per
            compiled loss.

    Attributes:
        members: As given.
        names: Tuple of the tasks' names, known after `resolve`.
        groups: Tuple with the places of each task's losses, known after `resolve`.
        observed: Whether a callback asks for the angles between gradients.
        statistics: The `StepStatistics` of those, or None.

    Raises:
        ValueError: An argument is not what it should be.
    """

    def __init__(self, combine, members=None):
        if combine not in COMBINATIONS:
            raise ValueError(
                f"combine must be one of {', '.join(map(repr, COMBINATIONS))}: got {combine!r}."
            )
        if members is not None and not (
            isinstance(members, dict)
            and all(isinstance(losses, list | tuple) and losses for losses in members.values())
        ):
            raise ValueError(
                "tasks must map the name of each task to a list with the names of its losses: got "
                f"{members!r}."
            )
        self.combine = combine
        self.weights = COMBINATIONS[combine]
        self.observed = False
        self.statistics = None
        self.names = ()
        self.groups = ()
        self.members = members

    @property
    def is_plain(self):
        """Whether one gradient, of the sum of the losses, does for all tasks."""
        return self.combine == "sum" and not self.observed

    def resolve(self, names):
        """Find the tasks among the compiled losses.

        Args:
            names: List with the name of each compiled loss.

        Raises:
            ValueError: There are fewer than two tasks; a loss is unknown, or belongs to none of
                the tasks, or to several.
        """
        members = self.members or {name: [name] for name in names}
        wanted = [name for losses in members.values() for name in losses]
        if sorted(wanted) != sorted(names):
            raise ValueError(
                f"tasks must hold each compiled loss once: got {', '.join(wanted)}, and the model "
                f"has {', '.join(names) or 'none'}. A loss has the name of its output."
            )
        if len(members) < 2:
            raise ValueError(
                f"multitask needs two tasks or more: got {', '.join(members) or 'none'}. Compile "
                "one loss per output, or train without multitask."
            )
        self.names = tuple(members)
        self.groups = tuple(
            tuple(names.index(name) for name in losses) for losses in members.values()
        )
