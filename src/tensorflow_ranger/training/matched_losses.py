"""The losses that Keras has compiled, matched with what a model put out."""

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals, replicas


class MatchedLosses:
    """Asks each compiled loss of a model about its own targets, outputs and weights.

    Args:
        model: A compiled Keras model.
    """

    def __init__(self, model):
        self.model = model
        self._compile_loss = keras_internals.compiled_loss(model)
        self.is_own = type(model).compute_loss is not keras.Model.compute_loss

    @property
    def losses(self):
        """Keras' records ``(path, loss, loss_weights, name)`` of the compiled losses."""
        if self.is_own or self._compile_loss is None:
            return []
        return keras_internals.loss_records(self._compile_loss)

    def name(self, place):
        """Return the name of a compiled loss, and its output's if there are several."""
        record = self.losses[place]
        output = f" of output {record.name!r}" if len(self.losses) > 1 else ""
        return f"{record.loss.name!r}{output}"

    def own_loss(self, x, y, y_pred, sample_weight):
        """Return what the model's own `compute_loss` returns, for all replicas."""
        loss = keras_internals.computed_loss(self.model, x, y, y_pred, sample_weight)
        return undivided(ops.convert_to_tensor(loss))

    def for_each(self, function, y, y_pred, sample_weight):
        """Call ``function(place, loss, y_true, y_pred, sample_weight)`` in place of each loss.

        Keras matches losses, targets, outputs and weights; its copy here only has other losses.
        Returns the weighted sum of what `function` returned, as Keras sums losses.
        """
        if self.is_own or self._compile_loss is None:
            return None
        stands = [_Stand(function, place, record.loss) for place, record in enumerate(self.losses)]
        matched = keras_internals.with_losses(self._compile_loss, stands)
        return matched(y, y_pred, sample_weight)

    def track(self, parts, rows):
        """Update the metrics Keras keeps of each of several losses."""
        for metric, part in zip(self._compile_loss.metrics if parts else (), parts, strict=False):
            metric.update_state(part, sample_weight=rows)


class _Stand:
    """Stands for a loss among Keras' losses."""

    def __init__(self, function, place, loss):
        self._function = function
        self._place = place
        self._loss = loss

    def __call__(self, y_true, y_pred, sample_weight=None):
        value = self._function(self._place, self._loss, y_true, y_pred, sample_weight)
        return ops.zeros((), self._loss.dtype) if value is None else value


def undivided(value):
    """Return a mean as it was before Keras divided it by the number of replicas.

    Here one mean is known for all replicas.
    """
    divisor = replicas.loss_divisor()
    return value if divisor == 1 else value * divisor


def is_keras(thing):
    """Return whether the class of `thing` is Keras' own."""
    return type(thing).__module__.startswith("keras.")
