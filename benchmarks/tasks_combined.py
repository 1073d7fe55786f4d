"""Train domain and sentiment of short texts together, with every way to combine their gradients.

    python -m benchmarks.tasks_combined docs/multitask.svg

Prints the held-out accuracies beside those of models of one task, and draws them with the angle
between the tasks' gradients. Three seeds each.
"""

import argparse
import statistics

import keras
import matplotlib as mpl

import tensorflow_ranger as ranger
from tensorflow_ranger.multitask.combinations import COMBINATIONS
from tensorflow_ranger_cli.tasks import reviews_multitask

mpl.use("svg")
from matplotlib import pyplot as plt

TASKS = ("domain", "sentiment")
SEEDS = (0, 1, 2)
BATCH, MICRO_BATCH, EPOCHS, RATE = 256, 128, 5, 0.002


def train(data, combine, seed, outputs=TASKS):
    """Return the history of a training, with what is held out evaluated after each epoch."""
    (x, y), (held_x, held_y) = data
    model = reviews_multitask.build_model(seed, outputs)
    model.compile(keras.optimizers.Adam(RATE), **reviews_multitask.compile_arguments(outputs))
    callbacks = []
    if combine is not None:
        ranger.multitask(model, combine)
        callbacks.append(ranger.callbacks.TaskConflicts())
    ranger.microbatch(model, MICRO_BATCH)
    return model.fit(
        x,
        {name: y[name] for name in outputs},
        validation_data=(held_x, {name: held_y[name] for name in outputs}),
        batch_size=BATCH,
        epochs=EPOCHS,
        callbacks=callbacks,
        verbose=0,
    ).history


def accuracy(history, task):
    """Return the held-out accuracy of `task` after the last epoch, in percent."""
    names = (f"val_{task}_accuracy", "val_accuracy")
    return 100 * next(history[name][-1] for name in names if name in history)


def main():
    """Train, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks_combined")
    parser.add_argument("path")
    path = parser.parse_args().path
    data = reviews_multitask.load()
    results, first = {}, {}
    alone = {
        task: [accuracy(train(data, None, seed, (task,)), task) for seed in SEEDS] for task in TASKS
    }
    results["alone"] = alone
    report("alone", alone)
    for combine in COMBINATIONS:
        histories = [train(data, combine, seed) for seed in SEEDS]
        first[combine] = histories[0]
        results[combine] = {
            task: [accuracy(history, task) for history in histories] for task in TASKS
        }
        report(combine, results[combine])
    for name in ("cosine_domain_sentiment", "conflict_domain_sentiment"):
        print(name, *(f"{value:.3f}" for value in first["sum"][name]))
    draw(path, results, first)


def report(name, accuracies):
    """Print the median and the range over the seeds."""
    words = [
        f"{task} {statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})"
        for task, each in accuracies.items()
    ]
    print(f"{name}:", *words, flush=True)


def draw(path, results, histories):
    """Write the picture as SVG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    history = histories["sum"]
    epochs = range(1, EPOCHS + 1)
    left.plot(epochs, history["cosine_domain_sentiment"], "o-", label="mean cosine")
    left.plot(epochs, history["conflict_domain_sentiment"], "s--", label="share of conflicts")
    left.axhline(0, color="gray", linewidth=0.5)
    left.set_xlabel("epoch")
    left.set_title("domain against sentiment, combine='sum'")
    left.legend(frameon=False)
    for name, accuracies in results.items():
        x, y = (statistics.median(accuracies[task]) for task in TASKS)
        right.plot(
            x, y, "s" if name == "alone" else "o", color="black" if name == "alone" else None
        )
        right.annotate(name, (x, y), (5, 4), textcoords="offset points")
    right.set_xlabel("domain, held-out accuracy in %")
    right.set_ylabel("sentiment, held-out accuracy in %")
    right.set_title("median of three seeds")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
