"""Train the contrastive digits with several batches, exactly and by each micro-batch's own loss.

    KERAS_BACKEND=torch python -m benchmarks.contrastive docs/contrastive.svg

Every run sees the same pairs as often, in micro-batches of 16: the memory is the same. Adam's
learning rate is the same, too, but for the square root of the batch. Held out are 1,000 digits,
whose labels are told by the five nearest embeddings of the 4,000 training images.
"""

import argparse

import keras
import matplotlib as mpl

import tensorflow_ranger as ranger
from tensorflow_ranger_cli.tasks import registry

mpl.use("svg")
from matplotlib import pyplot as plt

TASK = "digits-contrastive"
MICRO_BATCH = 16
BATCHES = (16, 64, 256, 1024)
RATE = 0.001  # at the smallest batch
EPOCHS = 6
WAYS = {"whole": "loss of the whole batch", "shares": "mean of the micro-batches' losses"}


def accuracy(batch, loss):
    """Return the accuracy of the nearest neighbours after `EPOCHS` epochs with `batch` pairs."""
    task = registry.find(TASK)
    (x, y), held_out = task.load()
    keras.utils.set_random_seed(0)
    model = task.build_model(0)
    rate = RATE * (batch / MICRO_BATCH) ** 0.5
    model.compile(keras.optimizers.Adam(rate), loss=task.compile_arguments()["loss"])
    ranger.microbatch(model, MICRO_BATCH, loss=loss)
    model.fit(x, y, batch_size=batch, epochs=EPOCHS, verbose=0)
    (figure,) = task.figures
    return figure.of(model, held_out, {})


def main():
    """Train, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contrastive")
    parser.add_argument("path")
    path = parser.parse_args().path
    found = {}
    for loss in WAYS:
        for batch in BATCHES:
            found[loss, batch] = accuracy(batch, loss)
            print(f"{WAYS[loss]}, batch {batch}: {found[loss, batch]:.1%}", flush=True)
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for loss, name in WAYS.items():
        axes.plot(BATCHES, [100 * found[loss, batch] for batch in BATCHES], "o-", label=name)
    axes.set(xscale="log", xlabel="pairs per update", ylabel="nearest neighbours right (%)")
    axes.set_xticks(BATCHES, labels=[str(batch) for batch in BATCHES])
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
