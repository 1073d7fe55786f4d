"""Trains under FSDP2; run by `test_fsdp2.py` in several processes.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.distributed.fsdp2_worker FOLDER

For every case each process writes its losses, what it holds and the weights to FOLDER/CASE-RANK.npz.
"""

import datetime
import gc
import sys
from pathlib import Path

import keras
import numpy as np
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

import tensorflow_ranger as ranger
from examples import fsdp2
from tensorflow_ranger.cli.tasks import digits

UPDATES = 20
BATCH = 125  # 63 and 62 samples, in micro-batches of 16 and 15
MICRO_BATCHES = 4


def dense(units, **kwargs):
    # The seed makes the weights the same in every process.
    kernel = keras.initializers.GlorotUniform(seed=0)
    return keras.layers.Dense(units, kernel_initializer=kernel, **kwargs)


class Block(keras.layers.Layer):
    """A layer that holds layers, one of them frozen."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.LayerNormalization()
        self.frozen = dense(16, activation="tanh", trainable=False)
        self.dense = dense(16, activation="tanh")

    def build(self, shape):
        for layer in (self.norm, self.frozen, self.dense):
            layer.build(shape)

    def call(self, x):
        return x + self.dense(self.frozen(self.norm(x)))


class Nested(keras.Model):
    """A model whose layers are its attributes; it calls one of them twice."""

    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.wide = dense(16)
        self.block = Block()
        self.head = dense(10, activation="softmax")

    def call(self, x):
        return self.head(self.block(self.block(self.wide(self.flatten(x)))))


def nested():
    model = Nested()
    model(np.zeros((1, *digits.IMAGE_SHAPE), "float32"))
    return model


def convolutional():
    return digits.build_model(seed=0)


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def adamw():
    return keras.optimizers.AdamW(1e-3, clipvalue=0.01, use_ema=True)


def radam():
    return ranger.RAdam(1e-3, beta_2=0.9, lookahead=ranger.Lookahead())


# By name: the model, the optimizer, and whether gradients are reduced after each micro-batch.
CASES = {
    "sgd": (convolutional, sgd, False),
    "adamw": (convolutional, adamw, False),
    "radam": (convolutional, radam, True),
    "nested": (nested, sgd, False),
}


def batches():
    (x, y), _ = digits.load()
    return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, UPDATES * BATCH, BATCH)]


def train(build_model, build_optimizer, reduce_each, batches):
    """Return what a process writes."""
    others = storages()
    model, optimizer = build_model(), build_optimizer()
    shards = fsdp2.shard(model, optimizer)
    losses = [fsdp2.update(model, optimizer, x, y, MICRO_BATCHES, reduce_each) for x, y in batches]
    optimizer.finalize_variable_values(shards)
    assert all(isinstance(v.value, DTensor) for v in model.trainable_variables)
    held = {key: size for key, size in storages().items() if key not in others}
    weights = fsdp2.whole_weights(model)
    return {
        "losses": losses,
        "shards": sum(v.value.numel() for v in shards),
        "slots": sum(v.value.numel() for v in optimizer.variables),
        "bytes": sum(held.values()),
        **{f"weight_{i}": weight for i, weight in enumerate(weights)},
    }


def storages():
    """Return the sizes of the memory blocks that tensors lie in, by their addresses."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    blocks = [tensor.untyped_storage() for tensor in tensors if not isinstance(tensor, DTensor)]
    return {block.data_ptr(): block.nbytes() for block in blocks}


def main(folder):
    distributed.init_process_group(timeout=datetime.timedelta(seconds=60))
    data = batches()
    for name, case in CASES.items():
        result = train(*case, data)
        np.savez(Path(folder) / f"{name}-{distributed.get_rank()}.npz", **result)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
