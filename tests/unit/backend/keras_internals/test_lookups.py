"""Contract: Keras' layers look up rows of their tables where `keras_internals` answers them."""

import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.keras_internals import lookups as seam

INDICES = np.array([[1, 0], [2, 2]])


class Recorder:
    """Answers as Keras would, and records in what it was asked to look."""

    def __init__(self):
        self.tables = []

    def __call__(self, function, table, indices):
        self.tables.append(table)
        return function(table, indices)


def test_an_embedding_asks():
    recorder, layer = Recorder(), layers.Embedding(3, 2)
    plain = layer(INDICES)
    with keras_internals.looking_up_by(recorder):
        found = layer(INDICES)
    assert recorder.tables == [layer.embeddings]
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (found, plain)))


def test_an_answer_is_what_is_looked_up():
    layer = layers.Embedding(3, 2)
    layer.build(())
    with keras_internals.looking_up_by(lambda function, table, indices: function(table, [0])):
        found = layer(INDICES)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), layer.get_weights()[0][:1])


def test_what_is_no_row_of_a_variable_is_not_asked_for():
    recorder, table = Recorder(), keras.Variable(np.ones((3, 3)))
    with keras_internals.looking_up_by(recorder):
        ops.take(table, INDICES, axis=1)
        ops.take(table, INDICES)
        ops.take(table.value, INDICES, axis=0)
    assert not recorder.tables


def test_keras_looks_up_by_itself_after_the_last_scope_and_in_other_threads():
    recorder, own = Recorder(), seam.keras_backend.numpy.take
    layer = layers.Embedding(3, 2)
    layer.build(())
    with keras_internals.looking_up_by(recorder), keras_internals.looking_up_by(recorder):
        thread = threading.Thread(target=lambda: layer(INDICES))
        thread.start()
        thread.join()
        with pytest.raises(ZeroDivisionError), keras_internals.looking_up_by(recorder):
            raise ZeroDivisionError
    assert not recorder.tables
    assert seam.keras_backend.numpy.take is own
