"""Draw memory, time and error of three ways to train with a large batch.

    KERAS_BACKEND=jax python -m benchmarks.against_keras docs/against_keras.svg

Plain `fit`, Keras' `gradient_accumulation_steps` and `microbatch` train the same tagger on the same
sentences of different lengths. All rows run in turn. Memory is what XLA needs for a step: weights,
optimizer, batch and temporaries. The difference from plain `fit`'s weights is a norm, as a fraction
of the norm of what training changed.
"""

import argparse
import statistics
import time

import jax
import keras
import matplotlib as mpl
import numpy as np

import tensorflow_ranger as ranger
from tensorflow_ranger.backend.jax.memory import bytes_of, temporaries_of

mpl.use("svg")
from matplotlib import pyplot as plt

BATCHES = (32, 64, 128, 256, 512, 1024, 2048)
SIZE = 32
ROUNDS = 8
LENGTH, WORDS, TAGS = 64, 5000, 20
PLAIN, KERAS, OURS = "plain fit", "gradient_accumulation_steps", "microbatch(model, 32)"
INK = "#797979"  # as far from white as from black
STYLES = {
    PLAIN: {"color": INK, "marker": "o"},
    KERAS: {"color": "#d9730d", "marker": "s", "linestyle": "--", "ms": 9, "mfc": "none"},
    OURS: {"color": "#2f80ed", "marker": "D"},
}


def tagger(**optimizer):
    """Return a bidirectional LSTM that gives every word a tag."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            keras.layers.Embedding(WORDS, 64, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.LSTM(64, return_sequences=True)),
            keras.layers.Dense(TAGS),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(**optimizer), loss, jit_compile=True)
    return model


def sentences(count):
    """Return words, padded with 0, and a tag for each."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LENGTH + 1, size=(count, 1))
    words = rng.integers(1, WORDS, size=(count, LENGTH)) * (np.arange(LENGTH) < lengths)
    return words.astype("int32"), (words % TAGS).astype("int32")


class Row:
    """One way to train, on batches of one size."""

    def __init__(self, name, batch):
        steps = {KERAS: batch // SIZE}.get(name, 1)
        self.model = tagger(gradient_accumulation_steps=steps if steps > 1 else None)
        if name == OURS:
            ranger.microbatch(self.model, SIZE)
        x, y = sentences(batch)
        part = SIZE if name == KERAS else batch
        self.batches = [(x[i : i + part], y[i : i + part], None) for i in range(0, batch, part)]
        self.model._symbolic_build(data_batch=self.batches[0][:2])
        self.model.make_train_function()
        self.state = self.model._get_jax_state(True, True, True, True)
        self.memory = self._memory(name == OURS)
        self.seconds = []

    def run(self):
        """Make one update."""
        start, logs = time.process_time(), {}
        for data in self.batches:
            logs, self.state = self.model.train_function(self.state, iter([data]))
        jax.block_until_ready(logs)
        self.seconds.append(time.process_time() - start)

    def weights(self):
        """Return all trained weights as one vector."""
        return np.concatenate([np.ravel(values) for values in self.state[0]])

    def _memory(self, in_micro_batches):
        data = self.batches[0]
        if in_micro_batches:
            _, step = self.model.make_train_function.__self__._step_for(data)
            return step.memory(self.state, data, SIZE)
        step = jax.jit(self.model.train_step, donate_argnums=0).lower(self.state, data)
        return temporaries_of(step) + bytes_of((self.state, data))


def measure(batch):
    """Return memory in bytes, CPU seconds of a sample and error of each way."""
    rows = {name: Row(name, batch) for name in STYLES}
    start = rows[PLAIN].weights()
    for _ in range(ROUNDS):
        for row in rows.values():
            row.run()
    whole = rows[PLAIN].weights()
    return {
        name: (
            row.memory,
            statistics.median(row.seconds[1:]) / batch,  # the first one compiles
            np.linalg.norm(row.weights() - whole) / np.linalg.norm(whole - start),
        )
        for name, row in rows.items()
    }


def draw(path, measured):
    """Write the picture as SVG."""
    plt.rcParams.update({"svg.hashsalt": "against_keras", "font.size": 11})
    for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        plt.rcParams[part] = INK
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.6), layout="constrained")
    titles = ("Memory of an update, MB", "CPU time per sample, ms", "Difference from plain fit")
    scales = (1e-6, 1e3, 1)
    for index, (axes, title, scale) in enumerate(zip(panels, titles, scales, strict=True)):
        for name, style in STYLES.items():
            values = {batch: scale * measured[batch][name][index] for batch in BATCHES}
            drawn = [batch for batch, value in values.items() if value]  # 0 has no logarithm
            axes.plot(drawn, [values[batch] for batch in drawn], label=name, **style)
        axes.set_title(title, fontsize=11)
        axes.set_xscale("log", base=2)
        axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES], fontsize=9)
        axes.set_xlabel("batch")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(bottom=0)
    panels[2].set(yscale="log", ylim=(1e-8, 1))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None}, transparent=True)


def main():
    """Measure, print a table and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_keras")
    parser.add_argument("path")
    path = parser.parse_args().path
    measured = {}
    print("| batch | | memory, MB | CPU ms per sample | difference |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for batch in BATCHES:
        measured[batch] = measure(batch)
        for name, (memory, seconds, error) in measured[batch].items():
            row = f"{memory / 1e6:.0f} | {1e3 * seconds:.2f} | {error:.1e}"
            print(f"| {batch} | {name} | {row} |", flush=True)
    draw(path, measured)


if __name__ == "__main__":
    main()
