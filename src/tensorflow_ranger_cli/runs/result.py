"""The result of a run: what the saved model reaches on the held-out samples."""


def record(judged, updates):
    """Return a result as a run stores it, in what JSON can hold.

    Args:
        judged: Figures of the saved model, as `Task.judge` returns them.
        updates: Updates that made the saved model.
    """
    figures = {figure.name: float(number) for figure, number in judged.items()}
    return {"figures": figures, "updates": updates}


def figures(result, task):
    """Return the numbers of a result by `Figure`, of those that the task still has.

    Args:
        result: What `record` returned.
        task: `Task`.
    """
    numbers = result["figures"]
    return {figure: numbers[figure.name] for figure in task.figures if figure.name in numbers}


def in_words(figures):
    """Return the numbers that `figures` returned, with their names."""
    return ", ".join(figure.in_words(number) for figure, number in figures.items())


def difference_in_words(result, epochs):
    """Return why a result is not the last epoch's, in a sentence, or None where it is.

    Args:
        result: What `record` returned.
        epochs: The rows of epochs of the run's `UpdateHistory`.
    """
    evaluated, made = epochs[-1]["updates"], result["updates"]
    if evaluated == made:
        return None
    return (
        "The saved model has one more update than the last epoch's figures, which were taken at "
        f"update {evaluated:,}: the end of training made update {made:,} from the remaining "
        "micro-batches."
    )
