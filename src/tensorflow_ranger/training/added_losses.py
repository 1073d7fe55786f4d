"""The losses that layers add while a model is called, one number of a micro-batch each."""

from keras import ops

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.training.call_scope import CallScope
from tensorflow_ranger.training.matched_losses import is_keras, undivided


class AddedLosses:
    """Knows which layer adds which loss, and which of them are sums over the samples.

    The others are means. Regularizers of weights belong to no layer's call, and count once per
    batch.

    Args:
        model: A built Keras model.
    """

    def __init__(self, model):
        self._model = model
        self._weights = model.trainable_weights
        self.names = []  #: Of each added loss: the name of its layer, or None.
        self._known = set()
        self._sums = set()

    def find(self):
        """Learn from the call of the model that has just ended which losses there are."""
        owners = self._owners()
        self._known = {layer.name for layer in owners.values() if _is_regularized_by_keras(layer)}
        layers = [owners.get(id(loss)) for loss in self._model.losses]
        self.names = [None if layer is None else layer.name for layer in layers]

    @property
    def asked(self):
        """Pairs of the place and the layer's name of each loss of which `learn` is to tell more."""
        return [(place, name) for place, name in enumerate(self.names) if name]

    @property
    def known(self):
        """For each of `asked` whether it is known to be a mean or a sum."""
        return [name in self._known for _, name in self.asked]

    def answers(self):
        """Return the value of each of `asked`, a scalar."""
        added = self._model.losses
        return [
            keras_internals.added_loss_value(self._model, added[place]) for place, _ in self.asked
        ]

    def learn(self, sums):
        """Take which of `asked` are sums over the samples: a bool for each."""
        pairs = zip(self.asked, sums, strict=True)
        self._sums = {place for (place, _), is_sum in pairs if is_sum}

    def shares(self, fraction):
        """Return the micro-batch's share of each added loss.

        Args:
            fraction: Scalar; the micro-batch's fraction of the batch's samples.
        """
        if not self._are_there_any():
            return []
        values = [
            undivided(keras_internals.added_loss_value(self._model, loss))
            for loss in self._model.losses
        ]
        return [self._share(place, value, fraction) for place, value in enumerate(values)]

    def by_layers(self, fraction):
        """Return pairs of a layer and the micro-batch's share of a loss that it has added.

        Args:
            fraction: Scalar; the micro-batch's fraction of the batch's samples.
        """
        owners = self._owners()
        return [
            (owners[id(loss)], self._share(place, ops.sum(loss), fraction))
            for place, loss in enumerate(self._model.losses)
            if id(loss) in owners
        ]

    def _are_there_any(self):
        """Return whether to ask Keras, which looks at every layer and every weight."""
        is_regularized = any(weight.regularizer is not None for weight in self._weights)
        return bool(self.names or CallScope.current().losses or is_regularized)

    def _owners(self):
        return {
            id(loss): layer
            for layer in keras_internals.layers_of(self._model)
            for loss in keras_internals.own_losses(layer)
        }

    def _share(self, place, value, fraction):
        return value if place in self._sums else value * ops.cast(fraction, value.dtype)


def _is_regularized_by_keras(layer):
    # An activity regularizer is a mean over the samples, in older Keras a sum.
    return is_keras(layer) and is_keras(getattr(layer, "activity_regularizer", None))
