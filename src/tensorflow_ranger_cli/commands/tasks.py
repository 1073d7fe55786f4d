"""``tensorflow-ranger tasks``."""

import dataclasses
import json

from tensorflow_ranger_cli import options
from tensorflow_ranger_cli.runs.settings import Settings
from tensorflow_ranger_cli.tasks import registry


def tasks(as_json: options.Json = False):
    """List the tasks that can be trained, with their default settings."""
    found = [(registry.find(name), Settings.new({"task": name})) for name in registry.names()]
    if as_json:
        print(json.dumps([_as_dict(task, settings) for task, settings in found], indent=2))
        return
    width = max(len(task.name) for task, _ in found)
    for task, settings in found:
        bars = ", ".join(
            f"{figure.in_words(figure.bar)} or {'more' if figure.at_least else 'less'}"
            for figure in task.figures
        )
        print(f"{task.name:<{width}}  {task.summary}")
        for line in (
            f"{settings.optimizer_in_words}, learning rate {settings.learning_rate}, "
            f"{settings.batch_in_words} per update, {settings.epochs} epoch"
            f"{'s' if settings.epochs > 1 else ''}",
            f"held out: {bars}",
            f"predict: {task.predicts or 'no'}",
        ):
            print(f"    {line}")


def _as_dict(task, settings):
    return {
        "name": task.name,
        "summary": task.summary,
        "samples": task.samples,
        "metrics": task.metrics,
        "figures": [
            {"name": figure.name, "bar": figure.bar, "at_least": figure.at_least}
            for figure in task.figures
        ],
        "predicts": task.predicts or None,
        "settings": dataclasses.asdict(settings),
    }
