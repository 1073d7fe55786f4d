"""Connectionist temporal classification of sequences that have lengths of their own.

Targets hold all that the loss must know: row i is ``[frames, label 1, label 2, ..., 0, 0]``, with
the number of real frames, and labels from 1, as 0 is the blank and stands behind the end.
"""

import keras
import numpy as np
from keras import ops

from tensorflow_ranger_cli.tasks.models.seeded import Seeded

BLANK = 0
UNITS = 64
REGISTER = keras.saving.register_keras_serializable(package="tensorflow_ranger")


def build_model(seed, shape, labels):
    """Return two bidirectional GRU layers, with logits for each label and for the blank.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
        shape: Tuple ``(frames, coefficients)``.
        labels: How many labels there are.
    """
    seeded = Seeded(seed)
    # No Masking: Keras would multiply its mask, one number a frame, into a loss of one a sample.
    # The zeros behind a recording's end are read, and the loss does not look at what comes of them.
    return keras.Sequential(
        [
            keras.Input(shape=shape),
            seeded.both_ways(UNITS),
            seeded.both_ways(UNITS),
            seeded.dense(labels + 1),
        ]
    )


def compile_arguments():
    """Return the loss, and the metric that counts samples whose labels are all right."""
    return {"loss": CTCOfLengths(), "metrics": [all_right]}


def targets(frames, labels):
    """Return the targets.

    Args:
        frames: Array with each sample's number of real frames.
        labels: List of each sample's labels, a list of integers >= 1.
    """
    rows = np.zeros((len(labels), 1 + max(map(len, labels))), "int32")
    rows[:, 0] = frames
    for row, own in zip(rows, labels, strict=True):
        row[1 : 1 + len(own)] = own
    return rows


@REGISTER
class CTCOfLengths(keras.losses.Loss):
    """-log of the probability of the labels, over all their alignments with the real frames.

    `keras.losses.CTC` takes every frame as real: what stands behind a recording's end would have
    to be aligned, too. One number for each sample, so the mean over a batch is that over its
    micro-batches.

    References:
        Graves et al. 2006, "Connectionist temporal classification", equations 1 and 2.
    """

    def __init__(self, reduction="sum_over_batch_size", name="ctc_of_lengths", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        """Return a loss for each sample.

        Args:
            y_true: `targets`.
            y_pred: Logits of shape ``(samples, frames, labels + 1)``.
        """
        frames, labels = _parts(y_true)
        count = ops.sum(ops.cast(labels != BLANK, "int32"), axis=1)
        return ops.ctc_loss(labels, y_pred, count, frames, mask_index=BLANK)


@REGISTER
def all_right(y_true, y_pred):
    """Return 1 for each sample whose best path gives just its labels, else 0.

    Args:
        y_true: `targets`.
        y_pred: Logits of shape ``(samples, frames, labels + 1)``.
    """
    frames, labels = _parts(y_true)
    best = ops.cast(ops.argmax(y_pred, axis=-1), "int32")
    before = ops.pad(best[:, :-1], [[0, 0], [1, 0]], constant_values=BLANK)
    real = ops.arange(ops.shape(best)[1], dtype="int32")[None] < frames[:, None]
    said = (best != BLANK) & (best != before) & real
    place = ops.cumsum(ops.cast(said, "int32"), axis=1)  # from 1, of the label said last
    places = 1 + ops.arange(ops.shape(labels)[1], dtype="int32")
    # Frame t writes its label to its place, if it says one.
    writes = said[:, :, None] & (place[:, :, None] == places)
    written = ops.sum(ops.where(writes, best[:, :, None], 0), axis=1)
    right = ops.all(written == labels, axis=1) & (place[:, -1] <= ops.shape(labels)[1])
    return ops.cast(right, y_pred.dtype)


def decoded(logits, frames):
    """Return the labels of each sample's best path, as lists.

    Args:
        logits: Array of shape ``(samples, frames, labels + 1)``.
        frames: Array with each sample's number of real frames.
    """
    found = []
    for row, length in zip(logits.argmax(axis=-1), frames, strict=True):
        path = row[:length]
        changes = path[np.diff(path, prepend=BLANK) != 0]
        found.append([int(label) for label in changes if label != BLANK])
    return found


def _parts(y_true):
    rows = ops.cast(y_true, "int32")
    return rows[:, 0], rows[:, 1:]


def label_errors(model, x, y):
    """Return the edits that turn what `model` hears into what was said, per label said.

    Args:
        model: Keras model that gives logits.
        x: Array of its inputs.
        y: `targets`.
    """
    heard = decoded(model.predict(x, verbose=0), y[:, 0])
    said = [[int(label) for label in row if label != BLANK] for row in y[:, 1:]]
    edits = sum(edit_distance(one, other) for one, other in zip(heard, said, strict=True))
    return edits / sum(map(len, said))


def edit_distance(one, other):
    """Return how many labels must be put in, taken out or changed to make `other` of `one`."""
    # Row i holds the distances of the first i labels of `one` to each beginning of `other`.
    distances = list(range(len(other) + 1))
    for i, label in enumerate(one, start=1):
        above, distances = distances, [i]
        for j, wanted in enumerate(other, start=1):
            change = above[j - 1] + (label != wanted)
            distances.append(min(change, above[j] + 1, distances[j - 1] + 1))
    return distances[-1]
