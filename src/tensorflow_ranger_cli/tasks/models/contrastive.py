"""Pairs of views of one thing, told apart from all other pairs of the batch."""

import keras
from keras import layers, ops

from tensorflow_ranger_cli.tasks.models.seeded import Seeded

REGISTER = keras.saving.register_keras_serializable(package="tensorflow_ranger")
WIDTH = 64  # of an embedding


def build_model(seed, shape):
    """Return a CNN that embeds both images of a pair: one output, an embedding beside the other.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
        shape: Shape of an image.
    """
    seeded = Seeded(seed)
    stack = [keras.Input(shape=shape)]
    for filters in (16, 32, 64):
        stack += [
            seeded.conv(filters, 3, strides=2, padding="same"),
            layers.LayerNormalization(),
            layers.Activation("relu"),
        ]
    stack += [layers.Flatten(), seeded.dense(128, activation="relu"), seeded.dense(WIDTH)]
    encoder = keras.Sequential(stack, name="encoder")
    pair = {side: keras.Input(shape=shape, name=side) for side in ("first", "second")}
    embedded = layers.Concatenate()([encoder(image) for image in pair.values()])
    return keras.Model(pair, OnSphere(name="on_sphere")(embedded))


def compile_arguments():
    """Return the loss, and the metric that counts the pairs that are found again."""
    return {"loss": InfoNCE(), "metrics": [pairs_found]}


@REGISTER
def pairs_found(y_true, y_pred):
    """Return the fraction of first views whose nearest second view in the batch is their own."""
    first, second = ops.split(y_pred, 2, axis=-1)
    found = ops.argmax(ops.matmul(first, ops.transpose(second)), axis=-1)
    own = ops.arange(ops.shape(y_pred)[0], dtype=found.dtype)
    return ops.mean(ops.cast(ops.equal(found, own), y_pred.dtype))


@REGISTER
class OnSphere(layers.Layer):
    """Gives both embeddings of a pair the same length, so that their products are scaled cosines.

    The length is trained: its square is the inverse of the temperature of `InfoNCE`.
    """

    def build(self, shape):
        """Make the weight."""
        self.log_scale = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(2.3), name="log_scale"
        )

    def call(self, pairs):
        """Return the pairs, on a sphere of a trained radius."""
        halves = ops.split(pairs, 2, axis=-1)
        length = ops.exp(self.log_scale / 2)
        return ops.concatenate([length * ops.normalize(half, axis=-1) for half in halves], axis=-1)


@REGISTER
class InfoNCE(keras.losses.Loss):
    """-log of the probability of a pair among all pairs of the batch, in both directions.

    Args:
        name: Name of the loss.
        **kwargs: Other arguments of `keras.losses.Loss`.

    References:
        van den Oord et al. 2018, equation 4; both directions as in Radford et al. 2021, figure 3.
    """

    def __init__(self, name="info_nce", **kwargs):
        super().__init__(name=name, **{**kwargs, "reduction": None})

    def call(self, y_true, y_pred):
        """Return one number for the batch."""
        first, second = ops.split(y_pred, 2, axis=-1)
        logits = ops.matmul(first, ops.transpose(second))
        own = ops.eye(ops.shape(logits)[0], dtype=logits.dtype)
        forth, back = (-ops.sum(own * ops.log_softmax(logits, axis=a), axis=1 - a) for a in (0, 1))
        return ops.mean(forth + back) / 2
