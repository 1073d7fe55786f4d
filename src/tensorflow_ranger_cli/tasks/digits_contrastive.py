"""Handwritten digits without their labels: two views of each, told apart from all others."""

import numpy as np

from tensorflow_ranger_cli.tasks import digits
from tensorflow_ranger_cli.tasks.data.images import IMAGE_SHAPE, SIDE
from tensorflow_ranger_cli.tasks.task import Figure, Task

PAIRS = 3  # of views of each training image
VIEW_SEED = 1  # fixed: runs with different seeds are trained on the same views
NEIGHBOURS = 5


def load():
    """Return pairs of views of the digits of `digits`, the same in every run.

    A view is an image turned by up to 20 degrees, stretched or shrunk by up to 20 % along either
    axis, sheared and moved by up to 3 pixels. Held-out images are not changed.

    Returns:
        ``((x, y), (x, y))``: 12,000 training and 1,000 held-out pairs, dicts of two float32 arrays
        of shape ``(n, 28, 28, 1)``; their int32 labels, which the loss does not look at.

    Raises:
        CommandError: The data is missing or another.
    """
    (images, labels), (held_out, held_out_labels) = digits.load()
    rng = np.random.default_rng(VIEW_SEED)
    images, labels = np.tile(images, (PAIRS, 1, 1, 1)), np.tile(labels, PAIRS)
    pairs = {side: _views(images, rng) for side in ("first", "second")}
    return (pairs, labels), ({"first": held_out, "second": held_out.copy()}, held_out_labels)


def _views(images, rng):
    """Return an affine map of each image, interpolated between the four pixels around a point."""
    count = len(images)
    angle = np.deg2rad(rng.uniform(-20, 20, count))
    stretch = rng.uniform(0.8, 1.2, (count, 2))
    shear, move = rng.uniform(-0.2, 0.2, count), rng.uniform(-3, 3, (count, 2))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    slant = np.stack([np.ones(count), shear, np.zeros(count), np.ones(count)], -1)
    matrix = turn.reshape(-1, 2, 2) @ slant.reshape(-1, 2, 2) / stretch[:, None]
    middle = (SIDE - 1) / 2
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1) - middle
    points = np.einsum("nij,hwj->nhwi", matrix, grid) + move[:, None, None] + middle
    corner = np.floor(points).astype(int)
    part = (points - corner).astype("float32")
    padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    numbers = np.arange(count)[:, None, None]
    views = np.zeros(images.shape[:3], "float32")
    for down in (0, 1):
        for right in (0, 1):
            places = np.clip(corner + np.array([down, right]) + 1, 0, SIDE + 1)
            weight = np.abs(1 - down - part[..., 0]) * np.abs(1 - right - part[..., 1])
            views += weight * padded[numbers, places[..., 0], places[..., 1]]
    return views[..., None]


def build_model(seed):
    """Return a CNN that embeds both views, 186,000 parameters.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
    """
    from tensorflow_ranger_cli.tasks.models import contrastive

    return contrastive.build_model(seed, IMAGE_SHAPE)


def compile_arguments():
    """Return the loss, and the metric that counts the pairs that are found again."""
    from tensorflow_ranger_cli.tasks.models import contrastive

    return contrastive.compile_arguments()


def accuracy_of_neighbours(model, x, y):
    """Return the fraction of images whose nearest training images have their label.

    The `NEIGHBOURS` nearest, by the cosine of the embeddings, vote; the nearest decides a tie.
    """
    (images, labels), _ = digits.load()
    found = model.predict({"first": images, "second": images}, batch_size=500, verbose=0)
    asked = model.predict(x, batch_size=500, verbose=0)
    half = found.shape[-1] // 2
    nearest = np.argsort(-asked[:, :half] @ found[:, :half].T, axis=-1, kind="stable")
    votes = labels[nearest[:, :NEIGHBOURS]]
    counts = np.stack([(votes == label).sum(-1) for label in range(10)], -1).astype("float64")
    counts[np.arange(len(votes)), votes[:, 0]] += 0.5
    return float(np.mean(counts.argmax(-1) == y))


TASK = Task(
    name="digits-contrastive",
    title="Pairs of digits",
    summary="two views of each of 4,000 digits, told apart from all others of the batch (InfoNCE)",
    samples="pairs",
    data=digits.FILE,
    load=load,
    build_model=build_model,
    compile_arguments=compile_arguments,
    metrics=("pairs_found",),
    figures=(Figure("nearest neighbours right", accuracy_of_neighbours, "{:.1%}", bar=0.93),),
    defaults={
        "optimizer": "adam",
        "learning_rate": 0.002,
        "batch_size": 512,
        "microbatch": 64,
        "epochs": 10,
    },
    objects="tensorflow_ranger_cli.tasks.models.contrastive",
)
