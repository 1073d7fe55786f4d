"""How well the next character is foretold."""

import math

import keras


@keras.saving.register_keras_serializable(package="tensorflow_ranger")
def bits_per_character(y_true, y_pred):
    """Return -log2 of the probability of each character.

    Args:
        y_true: Classes, of shape ``(samples, characters)``.
        y_pred: Logits of shape ``(samples, characters, classes)``.
    """
    nats = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
    return nats / math.log(2)
