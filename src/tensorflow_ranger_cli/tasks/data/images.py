"""Images of handwritten digits, as MNIST has them: white on black, 28 x 28, centred."""

import numpy as np

from tensorflow_ranger_cli.errors import CommandError, UsageError

CLASSES = 10
SIDE = 28
IMAGE_SHAPE = (SIDE, SIDE, 1)
BOX = 20  # MNIST's digits fill a box of 20 x 20, and their centre of mass is at pixel 14
INK = 0.2  # what is brighter, of white on black, belongs to the digit


def classified():
    """Return loss and metric of a model that gives each class its probability."""
    return {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}


def predict(model, paths):
    """Return a line for each image file: the digit that `model` sees, and how sure it is.

    Raises:
        UsageError: A file is no image, or shows nothing.
        CommandError: pillow is not installed.
    """
    probabilities = model.predict(np.stack([read(path) for path in paths]), verbose=0)
    return [f"{row.argmax()} ({row.max():.1%})" for row in probabilities]


def read(path):
    """Return the digit in an image file as MNIST would have it: float32 of shape (28, 28, 1).

    Raises:
        UsageError: The file is no image, or shows nothing.
        CommandError: pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise CommandError(
            "images are read by pillow, which is not installed. "
            'Run: pip install "tensorflow-ranger[examples]"'
        ) from error
    try:
        with Image.open(path) as image:
            colours = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"FILE must be an image of a digit, such as PNG or JPEG: got {path} ({error})"
        ) from error
    paper = Image.new("RGBA", colours.size, "white")
    paper.alpha_composite(colours)
    grey = np.asarray(paper.convert("L"), "float32") / 255
    return _as_mnist(_white_on_black(grey, path), Image)


def _white_on_black(grey, path):
    """Return the image with its background at 0 and its brightest ink at 1."""
    # A digit leaves most of the edge free, so the edge tells the background.
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(edge))
    if ink.max() < INK:
        raise UsageError(f"FILE must show a digit that stands out from its background: got {path}")
    return ink / ink.max()


def _as_mnist(ink, Image):
    """Return the digit cut out, made 20 pixels high or wide, and put in the middle."""
    rows, columns = (np.flatnonzero((ink > INK).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(size * scale)) for size in ink.shape)
    small = Image.fromarray(np.uint8(np.round(255 * ink))).resize((width, height), Image.LANCZOS)
    digit = np.asarray(small, "float32") / 255
    centre = [
        (digit.sum(axis=1 - axis) * np.arange(size)).sum() / digit.sum()
        for axis, size in enumerate(digit.shape)
    ]
    image = np.zeros((SIDE, SIDE), "float32")
    top, left = (
        int(np.clip(round(SIDE / 2 - middle), 0, SIDE - size))
        for middle, size in zip(centre, digit.shape, strict=True)
    )
    image[top : top + height, left : left + width] = digit
    return image[..., None]
