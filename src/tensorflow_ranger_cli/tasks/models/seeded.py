"""Layers whose initial weights and random masks are functions of one seed."""

import keras
import numpy as np
from keras import layers


class Seeded:
    """Makes layers, each with seeds of its own.

    Keras' own `set_random_seed` imports TensorFlow on every backend that it is installed beside,
    and one seed for all layers would make twins of those of one shape.

    Args:
        seed: Integer >= 0.
    """

    def __init__(self, seed):
        self._sequence = np.random.SeedSequence(seed)

    def seed(self):
        """Return the next seed."""
        (child,) = self._sequence.spawn(1)
        return int(child.generate_state(1)[0]) >> 1  # 31 bits: Keras on torch takes no more

    def glorot(self):
        """Return an initializer for kernels."""
        return keras.initializers.GlorotUniform(seed=self.seed())

    def conv(self, filters, size, **arguments):
        """Return a `Conv2D`."""
        return layers.Conv2D(filters, size, kernel_initializer=self.glorot(), **arguments)

    def dense(self, units, **arguments):
        """Return a `Dense`."""
        return layers.Dense(units, kernel_initializer=self.glorot(), **arguments)

    def embedding(self, size, units, **arguments):
        """Return an `Embedding`."""
        initializer = keras.initializers.RandomUniform(-0.05, 0.05, seed=self.seed())
        return layers.Embedding(size, units, embeddings_initializer=initializer, **arguments)

    def dropout(self, rate):
        """Return a `Dropout`."""
        return layers.Dropout(rate, seed=self.seed())

    def gru(self, units, **arguments):
        """Return a `GRU`."""
        return layers.GRU(
            units,
            kernel_initializer=self.glorot(),
            recurrent_initializer=keras.initializers.Orthogonal(seed=self.seed()),
            **arguments,
        )

    def both_ways(self, units):
        """Return a bidirectional `GRU` over sequences."""
        return layers.Bidirectional(
            self.gru(units, return_sequences=True),
            backward_layer=self.gru(units, return_sequences=True, go_backwards=True),
        )
