"""What a task is: data, and a function that builds a Keras model for it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Figure:
    """What a trained model is judged by.

    Args:
        name: In words: "accuracy".
        value: Name of the number among the results of `evaluate`, or a function
            ``(model, x, y)`` that returns it.
        form: Format of the number, such as "{:.1%}".
        bar: What the number must reach with the task's own settings.
        at_least: Whether it must be the bar or more, else the bar or less.
    """

    name: str
    value: str | Callable[[Any, Any, Any], float]
    form: str
    bar: float
    at_least: bool = True

    def of(self, model, held_out, results):
        """Return the number.

        Args:
            model: The trained model.
            held_out: Tuple ``(x, y)``.
            results: What `evaluate` returned for them, as a dict.
        """
        return results[self.value] if isinstance(self.value, str) else self.value(model, *held_out)

    def in_words(self, number):
        """Return the number with its name."""
        return f"{self.name} {self.form.format(number)}"

    def passes(self, number):
        """Return whether the number reaches the bar."""
        return number >= self.bar if self.at_least else number <= self.bar


@dataclasses.dataclass(frozen=True)
class Task:
    """Something that ``tensorflow-ranger train`` can train.

    A package declares it as an entry point of the group ``tensorflow_ranger.tasks``. Its module
    imports Keras within functions alone, as the command line chooses the backend before.

    Args:
        name: What it is called on the command line, and what its entry point is called.
        title: What the data is, in two or three words.
        summary: One line for the list of tasks.
        samples: What its samples are called: "images".
        data: Where the data comes from, an `InPackage` or a `Downloaded`.
        load: Function that returns ``((x, y), (x, y))``, training and held out: arrays, or dicts
            and lists of them, whose first axis is that of the samples.
        build_model: Function of a seed that returns a Keras model, a function of the seed alone.
        compile_arguments: Function that returns a dict with the loss and the metrics.
        metrics: Names of the metrics in the history, whose curves are drawn.
        figures: What the trained model is judged by.
        defaults: Settings that differ from those of `Settings`.
        padding: Number that stands behind the end of each sample, in sequences whose time axis the
            model leaves open, or None.
        objects: Module that registers what saved models name beside Keras' own, or None.
        predict: Function of a trained model and a list of arguments that returns a line for each,
            or None.
        predicts: What the arguments of `predict` are: "image files".
    """

    name: str
    title: str
    summary: str
    samples: str
    data: Any
    load: Callable[[], tuple]
    build_model: Callable[[int], Any]
    compile_arguments: Callable[[], dict]
    metrics: tuple[str, ...]
    figures: tuple[Figure, ...]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    padding: float | None = None
    objects: str | None = None
    predict: Callable[[Any, list[str]], list[str]] | None = None
    predicts: str = ""

    def judge(self, model, held_out, results):
        """Return the figures of a trained model as a dict by `Figure`.

        Args:
            model: The trained model.
            held_out: Tuple ``(x, y)``.
            results: What `evaluate` returned for them, as a dict.
        """
        return {figure: figure.of(model, held_out, results) for figure in self.figures}
