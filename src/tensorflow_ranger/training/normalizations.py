"""Moving variances, to which the spread between micro-batches' means belongs."""

import keras
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals


class Normalizations:
    """The pairs of a moving mean and its variance among the variables of layers.

    A batch's variance is the mean of its micro-batches' variances and the spread between their
    means (law of total variance), which Welford's running sums gather.

    Args:
        model: A built Keras model.
        foreign: Variables that the backend's own modules keep, such as buffers of PyTorch.
    """

    def __init__(self, model, foreign):
        self._model = model
        self._foreign = foreign
        self._pairs = {}

    @property
    def means(self):
        """Places of the moving means."""
        return [mean for mean, _ in self._pairs.values()]

    def find(self, variables):
        """Learn which of `variables` are a moving mean and its variance."""
        places = {id(variable): i for i, variable in enumerate(variables)}
        pairs = [
            (layer.moving_mean, layer.moving_variance, layer.momentum)
            for layer in self._layers()
            if layer.built and getattr(layer, "moving_variance", None) is not None
        ]
        pairs += arrays.foreign_normalizations(self._foreign)
        self._pairs = {
            places[id(variance)]: (places[id(mean)], momentum)
            for mean, variance, momentum in pairs
            if id(variance) in places and momentum < 1
        }

    def hold_any(self, variables):
        """Return whether a layer that normalizes by the samples it sees keeps one of these."""
        normalized = {id(v) for layer in self._layers() for v in layer.non_trainable_variables}
        normalized |= {id(v) for v in arrays.known_means(self._foreign)}
        return any(id(v) in normalized for v in variables)

    def open(self, values):
        """Return the spreads that a batch begins with, one tensor per pair."""
        return [ops.zeros_like(values[variance]) for variance in self._pairs]

    def added(self, spreads, old, new, means, before, samples):
        """Return the spreads with a micro-batch's means added.

        Args:
            spreads: List of tensors, those of the micro-batches before.
            old: List of tensors, the variables' means over these.
            new: List of tensors, the variables' values in this micro-batch.
            means: List of tensors, the variables' means with this micro-batch.
            before: Scalar; samples of the micro-batches before.
            samples: Scalar; samples of this one.
        """
        spreads = list(spreads)
        for place, mean in enumerate(self.means):
            has_mean = ops.cast(before > 0, old[mean].dtype)
            weight = has_mean * ops.cast(samples, old[mean].dtype)
            change = (new[mean] - old[mean]) * (new[mean] - means[mean])
            spreads[place] = spreads[place] + weight * change
        return spreads

    def final(self, values, spreads, samples):
        """Return the variables' values with the spreads in the moving variances.

        Args:
            values: List of tensors, the variables' means over the batch.
            spreads: List of tensors, those of the batch.
            samples: Scalar; samples of the batch.
        """
        values = list(values)
        # A moving mean has moved by 1 - momentum of what the batch's mean is away.
        for spread, (variance, (_, momentum)) in zip(spreads, self._pairs.items(), strict=True):
            between = spread / ops.cast(samples, spread.dtype)
            values[variance] = values[variance] + between / (1.0 - momentum)
        return values

    def _layers(self):
        layers = keras_internals.layers_of(self._model)
        return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
