"""Models that read the words of short texts."""

import keras
from keras import layers

from tensorflow_ranger_cli.tasks.data.reviews import BUCKETS
from tensorflow_ranger_cli.tasks.models.seeded import Seeded

UNITS = 64
DROPOUT = 0.3


def read_words(seed):
    """Return the first layers of a classifier of texts: the mean over the vectors of its words.

    The mask of the embedding leaves what stands behind a text's end out of the mean.

    Args:
        seed: Integer >= 0.

    Returns:
        ``(words, features, seeded)``: the input of shape ``(n, words)``, what is known of each
        text, of shape ``(n, units)``, and the `Seeded` for the layers to come.
    """
    seeded = Seeded(seed)
    words = keras.Input((None,), dtype="int32", name="words")
    vectors = seeded.embedding(BUCKETS, UNITS, mask_zero=True)(words)
    mean = layers.GlobalAveragePooling1D()(seeded.dropout(DROPOUT)(vectors))
    return words, seeded.dropout(DROPOUT)(mean), seeded
