"""CTC of sequences that have lengths of their own."""

import itertools

import keras
import numpy as np
import pytest

from tensorflow_ranger_cli.tasks.models import ctc

FRAMES, LABELS = 4, 2


def log_probabilities(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def collapsed(path):
    return [k for k, _ in itertools.groupby(path) if k != ctc.BLANK]


def loss_by_enumeration(logits, frames, labels):
    """Return -log of the sum over all paths of the real frames that give the labels."""
    rows = log_probabilities(logits[:frames].astype("float64"))
    paths = itertools.product(range(LABELS + 1), repeat=frames)
    scores = [
        sum(row[k] for row, k in zip(rows, path, strict=True))
        for path in paths
        if collapsed(path) == labels
    ]
    return -np.log(np.exp(scores).sum())


def test_the_loss_is_that_of_all_alignments_with_the_real_frames():
    logits = np.random.default_rng(0).normal(size=(4, FRAMES, LABELS + 1)).astype("float32")
    frames, labels = [4, 3, 2, 4], [[1, 2], [1, 1], [2], [2, 1, 2]]
    rows = ctc.targets(frames, labels)
    loss = ctc.CTCOfLengths(reduction="none")
    expected = [loss_by_enumeration(*case) for case in zip(logits, frames, labels, strict=True)]
    actual = keras.ops.convert_to_numpy(loss(rows, keras.ops.convert_to_tensor(logits)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # Keras' own takes the frames behind the end as real.
    other = logits.copy()
    other[2, 2:] += [5, 0, 0]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(loss(rows, keras.ops.convert_to_tensor(other))), actual
    )


def test_targets_begin_with_the_frames():
    np.testing.assert_array_equal(ctc.targets([9, 7], [[3], [1, 2]]), [[9, 3, 0], [7, 1, 2]])


@pytest.mark.parametrize(
    ("path", "frames", "labels", "right"),
    [
        ([1, 1, 0, 2], 4, [1, 2], True),
        ([1, 0, 1, 1], 4, [1, 1], True),
        ([1, 1, 1, 1], 4, [1, 1], False),
        ([1, 2, 0, 0], 4, [2, 1], False),
        ([1, 2, 2, 1], 3, [1, 2], True),
        ([1, 2, 2, 1], 4, [1, 2], False),
        ([0, 0, 0, 0], 4, [1], False),
        ([1, 0, 0, 0], 4, [1, 2], False),
    ],
)
def test_the_best_path_is_right_or_not(path, frames, labels, right):
    logits = np.eye(LABELS + 1, dtype="float32")[path][None]
    rows = np.pad(ctc.targets([frames], [labels]), [(0, 0), (0, 2 - len(labels))])
    found = ctc.all_right(rows, keras.ops.convert_to_tensor(logits))
    assert keras.ops.convert_to_numpy(found).tolist() == [right]
    assert (ctc.decoded(logits, [frames])[0] == labels) == right


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("abc", "abc", 0),
        ("abc", "bc", 1),
        ("ab", "ba", 2),
    ],
)
def test_edit_distance(one, other, edits):
    assert ctc.edit_distance(one, other) == ctc.edit_distance(other, one) == edits
