"""``tensorflow-ranger tasks``."""

from tensorflow_ranger_cli.runs.settings import Settings
from tensorflow_ranger_cli.tasks import registry


def tasks():
    """List what can be trained, and the settings that each task has by itself."""
    names = registry.names()
    for name in names:
        task, settings = registry.find(name), Settings.new({"task": name})
        bars = ", ".join(
            f"{figure.in_words(figure.bar)} or {'more' if figure.at_least else 'less'}"
            for figure in task.figures
        )
        print(f"{name:<{max(map(len, names))}}  {task.summary}")
        for line in (
            f"{settings.optimizer_in_words}, learning rate {settings.learning_rate}, "
            f"{settings.batch_in_words} per update, {settings.epochs} epoch"
            f"{'s' if settings.epochs > 1 else ''}",
            f"held out: {bars}",
            f"predict: {task.predicts or 'no'}",
        ):
            print(f"    {line}")
