"""Print what a loss of the whole batch costs beside a loss that is a mean over the samples.

    KERAS_BACKEND=jax python -m benchmarks.whole_loss [--rounds 11]

The models, sizes and batches are the same; rows run in turn. Times are CPU seconds of the process;
ratios are medians of the ratios within a round. "two passes by hand" is the scheme of Gao et al.
2021 for this one loss: the embeddings without gradients, the loss of all of them, and each
micro-batch again from its rows of the gradient (PyTorch alone). On JAX XLA's own count of a step's
memory is printed for a batch of 512 and one of 16,384, with a loss that compares no pairs.
"""

import argparse
import statistics
import time

import keras
import numpy as np
from keras import ops

import tensorflow_ranger as ranger

BATCH, SIZE, FEATURES, UNITS, WIDTH = 512, 64, 512, 1024, 64
LARGE = 16_384  # samples, for the memory
MEAN, WHOLE, SHARES, HAND = (
    "mean loss",
    "loss of the whole batch",
    'the same, loss="shares"',
    "two passes by hand",
)


def info_nce(y_true, y_pred):
    """Return the contrastive loss of the two halves of the outputs: one number for a batch."""
    first, second = ops.split(y_pred, 2, axis=-1)
    logits = ops.matmul(
        ops.normalize(first, axis=-1), ops.transpose(ops.normalize(second, axis=-1))
    )
    own = ops.eye(ops.shape(logits)[0], dtype=logits.dtype)
    return -ops.mean(ops.sum(own * ops.log_softmax(10.0 * logits), axis=-1))


def concordance(y_true, y_pred):
    """Return 1 less the concordance correlation of targets and outputs: one number for a batch."""
    covariance = ops.mean((y_true - ops.mean(y_true)) * (y_pred - ops.mean(y_pred)))
    apart = ops.square(ops.mean(y_true) - ops.mean(y_pred))
    return 1.0 - 2.0 * covariance / (ops.var(y_true) + ops.var(y_pred) + apart)


def network(loss):
    """Return four dense layers, compiled with `loss`."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((FEATURES,))]
    stack += [keras.layers.Dense(UNITS, activation="relu") for _ in range(3)]
    model = keras.Sequential([*stack, keras.layers.Dense(2 * WIDTH)])
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


class Row:
    """A model that trains by its own train function."""

    def __init__(self, loss, way=None):
        self.model = ranger.microbatch(network(loss), SIZE, loss=way)
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(BATCH, FEATURES)).astype("float32")
        self.y = rng.normal(size=(BATCH, 2 * WIDTH)).astype("float32")
        self.run()

    def run(self):
        """Train on a batch; return CPU seconds."""
        start = time.process_time()
        self.model.train_on_batch(self.x, self.y)
        return time.process_time() - start


class HandRow:
    """The two passes as a user of PyTorch writes them."""

    def __init__(self):
        import torch

        self.torch, self.model = torch, network(info_nce)
        self.x = torch.tensor(
            np.random.default_rng(0).normal(size=(BATCH, FEATURES)), dtype=torch.float32
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.run()

    def run(self):
        """Train on a batch; return CPU seconds."""
        torch, start = self.torch, time.process_time()
        self.optimizer.zero_grad()
        parts = self.x.split(SIZE)
        with torch.no_grad():
            outputs = torch.cat([self.model(part, training=True) for part in parts])
        outputs.requires_grad_()
        info_nce(None, outputs).backward()
        for part, slope in zip(parts, outputs.grad.split(SIZE), strict=True):
            self.model(part, training=True).backward(slope)
        self.optimizer.step()
        return time.process_time() - start


def temporaries(loss, samples):
    """Return the bytes that XLA allocates for a step on JAX beside arguments and results."""
    model = ranger.microbatch(network(loss), SIZE)
    x = np.zeros((samples, FEATURES), "float32")
    y = np.ones((samples, 2 * WIDTH), "float32")
    model._symbolic_build(data_batch=(x, y))
    model.make_train_function()
    _, step = model.make_train_function.__self__._step_for((x, y, None))
    state = model._get_jax_state(True, True, True, True)
    return step.temporaries(state, (x, y, None), SIZE)


def print_memory():
    """Print what a mean loss and a loss of the whole batch need for small and large batches."""
    outputs = (LARGE - BATCH) * 2 * WIDTH * 4
    for name, loss in ((MEAN, "mse"), (WHOLE, concordance)):
        small, large = (temporaries(loss, samples) for samples in (BATCH, LARGE))
        print(
            f"{name:28} {small / 2**20:8.2f} MiB at {BATCH}, {large / 2**20:8.2f} at {LARGE}: "
            f"{(large - small) / outputs:.2f} of the outputs that it has more"
        )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_loss")
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    rows: dict[str, Row | HandRow] = {
        MEAN: Row("mse"),
        WHOLE: Row(info_nce),
        SHARES: Row(info_nce, "shares"),
    }
    if keras.config.backend() == "torch":
        rows[HAND] = HandRow()
    seconds = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            seconds[name].append(row.run())
    print(f"\n{keras.config.backend()}: a batch of {BATCH} in micro-batches of {SIZE}")
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds[MEAN], strict=True))
        print(f"{name:28} {1e3 * statistics.median(own):8.1f} ms  {ratio:5.2f}")
    if keras.config.backend() == "jax":
        print_memory()


if __name__ == "__main__":
    main()
