"""Measure the noise scale of the spoken digits, and what batches of several sizes cost.

    python -m benchmarks.batch_and_noise docs/noise_scale.svg

Each batch trains the same network from the same weights, with Adam's learning rate scaled by the
square root of the batch, until the mean loss of an epoch falls below a goal.
"""

import argparse

import keras
import matplotlib as mpl

import tensorflow_ranger as ranger
from tensorflow_ranger_cli.tasks import registry

mpl.use("svg")
from matplotlib import pyplot as plt

TASK = "spoken-digits"
MICRO_BATCH = 8
MEASURED = 64  # the batch whose training is looked at
BATCHES = (16, 64, 250, 1250)
RATE = 0.005  # at the batch that is measured
GOAL = 2.0  # of the training loss
EPOCHS = 40


class StopAtGoal(keras.callbacks.Callback):
    """Ends the training when the mean loss of an epoch is below the goal."""

    def on_epoch_end(self, epoch, logs=None):
        assert self.model is not None
        self.model.stop_training = logs is not None and logs["loss"] < GOAL


def train(batch, callbacks, epochs):
    """Return the history of a training with `batch` samples per update."""
    task = registry.find(TASK)
    (x, y), _ = task.load()
    keras.utils.set_random_seed(0)
    model = task.build_model(0)
    rate = RATE * (batch / MEASURED) ** 0.5
    model.compile(keras.optimizers.Adam(rate), **task.compile_arguments())
    ranger.microbatch(model, min(MICRO_BATCH, batch // 2) if batch == MEASURED else batch)
    return model.fit(x, y, batch_size=batch, epochs=epochs, callbacks=callbacks, verbose=0).history


def main():
    """Train, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_and_noise")
    parser.add_argument("path")
    path = parser.parse_args().path
    noise = ranger.callbacks.NoiseScale(memory=100)
    history = train(MEASURED, [noise], epochs=8)
    for row in zip(
        *(history[name] for name in ("loss", "noise_scale", "noise_scale_low")), strict=True
    ):
        print("loss {:.3f}, noise scale {:.0f}, at least {:.0f}".format(*row), flush=True)
    samples = len(registry.find(TASK).load()[0][0])
    costs = {}
    for batch in BATCHES:
        losses = train(batch, [StopAtGoal()], EPOCHS)["loss"]
        # Between the last two epochs the loss is taken to fall evenly.
        reached = losses[-1] < GOAL
        over = (losses[-2] - GOAL) / (losses[-2] - losses[-1]) if reached and len(losses) > 1 else 1
        epochs = len(losses) - 1 + over
        costs[batch] = epochs * samples / batch, epochs * samples
        print(
            f"batch {batch}: {epochs:.2f} epochs, {costs[batch][0]:.0f} updates, {losses[-1]:.3f}",
            flush=True,
        )
    draw(path, history, costs)


def draw(path, history, costs):
    """Write the picture as SVG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    epochs = range(1, len(history["loss"]) + 1)
    left.plot(epochs, history["noise_scale"], "o-", color="tab:blue", label="noise scale")
    left.fill_between(
        epochs,
        history["noise_scale_low"],
        history["noise_scale_high"],
        color="tab:blue",
        alpha=0.2,
        label="95 % range",
    )
    left.axhline(MEASURED, color="tab:orange", linestyle="--", label="effective batch")
    left.set_yscale("log")
    left.set_xlabel("epoch")
    left.set_ylabel("samples")
    left.legend(frameon=False)
    updates, samples = zip(*costs.values(), strict=True)
    right.loglog(samples, updates, "o-", color="tab:blue")
    for batch, (count, seen) in costs.items():
        right.annotate(f"batch {batch}", (seen, count), (6, 4), textcoords="offset points")
    right.set_xlabel(f"samples until the loss is {GOAL}")
    right.set_ylabel("updates")
    figure.suptitle("Spoken digits: bidirectional GRU, CTC, Adam")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
