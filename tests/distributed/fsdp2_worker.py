"""Trains under FSDP2; run by `test_fsdp2.py` in several processes.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.distributed.fsdp2_worker FOLDER

For every case each process writes what `train` returns to FOLDER/CASE-RANK.npz.
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
from tensorflow_ranger_cli.tasks import digits

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
    return keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)


def adamw():
    return keras.optimizers.AdamW(1e-3, weight_decay=0.01, clipvalue=0.01, use_ema=True)


def radam():
    return ranger.RAdam(1e-3, beta_2=0.9)


# By name: the model, the optimizer, and whether gradients are reduced after each micro-batch.
CASES = {
    "last": (convolutional, sgd, False),
    "each": (nested, radam, True),
    "ema": (nested, adamw, False),
}


def batches():
    (x, y), _ = digits.load()
    return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, UPDATES * BATCH, BATCH)]


def train(build_model, build_optimizer, reduce_each, batches):
    """Return the updates' losses, what this process holds in the end, and the weights.

    Also, how often gradients were reduced in the first update.
    """
    gc.freeze()  # what is here already is none of the model's
    model, optimizer = build_model(), build_optimizer()
    shards = fsdp2.shard(model, optimizer)
    with torch.profiler.profile() as profile:
        x, y = batches[0]
        losses = [fsdp2.update(model, optimizer, x, y, MICRO_BATCHES, reduce_each)]
    for x, y in batches[1:]:
        losses.append(fsdp2.update(model, optimizer, x, y, MICRO_BATCHES, reduce_each))
    held = held_bytes()
    optimizer.finalize_variable_values(shards)
    weights = fsdp2.whole_weights(model)
    return {
        "losses": losses,
        "reductions": sum(
            "c10d::_reduce_scatter" in event.name for event in profile.events() or ()
        ),
        "shards": sum(v.value.numel() for v in shards),
        "slots": sum(v.value.numel() for v in optimizer.variables),
        "bytes": held,
        **{f"weight_{i}": weight for i, weight in enumerate(weights)},
    }


def held_bytes():
    """Return the bytes of memory in which tensors lie that were made since `gc.freeze`."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    # A gradient that nobody has looked at is no object yet.
    tensors += [x.grad for x in tensors if x.is_leaf and x.grad is not None]
    blocks = [tensor.untyped_storage() for tensor in tensors if not isinstance(tensor, DTensor)]
    return sum({block.data_ptr(): block.nbytes() for block in blocks}.values())


def main(folder):
    distributed.init_process_group(timeout=datetime.timedelta(seconds=60))
    data = batches()
    for name, (build_model, build_optimizer, reduce_each) in CASES.items():
        result = train(build_model, build_optimizer, reduce_each, data)
        np.savez(Path(folder) / f"{name}-{distributed.get_rank()}.npz", **result)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
