"""Losses in which the samples of a batch meet, each a function of targets and outputs."""

import keras
import numpy as np
from keras import ops

WIDTH = 4  # of the outputs: two embeddings of two numbers, or four scores


def _normalized(z):
    return z / ops.sqrt(ops.sum(ops.square(z), axis=-1, keepdims=True) + 1e-6)


def _similarity(z):
    half = WIDTH // 2
    return ops.matmul(_normalized(z[:, :half]), ops.transpose(_normalized(z[:, half:])))


def _cross_entropy(logits):
    labels = ops.eye(ops.shape(logits)[0], dtype=logits.dtype)
    return -ops.mean(ops.sum(labels * ops.log_softmax(logits), axis=-1))


def info_nce(y, z, log_scale):
    """Radford et al. 2021, figure 3: both directions, with a learned temperature."""
    logits = ops.exp(log_scale) * _similarity(z)
    return (_cross_entropy(logits) + _cross_entropy(ops.transpose(logits))) / 2


def siglip(y, z, log_scale, bias):
    """Zhai et al. 2023, equation 1: a sigmoid for each pair, with a learned scale and bias."""
    logits = ops.exp(log_scale) * _similarity(z) + bias
    signs = 2 * ops.eye(ops.shape(logits)[0], dtype=logits.dtype) - 1
    return -ops.sum(ops.log_sigmoid(signs * logits)) / ops.cast(ops.shape(z)[0], z.dtype)


def _same_label(y):
    label = ops.cast(y[:, :1] > 0, "int32")
    return ops.equal(label, ops.transpose(label))


def triplet_semi_hard(y, z, margin=1.0):
    """Schroff et al. 2015, section 3.2: the nearest negative that is farther than the positive."""
    distance = ops.sum(ops.square(z[:, None] - z[None]), axis=-1)
    same = _same_label(y)
    farther = ops.logical_and(distance[:, None, :] > distance[:, :, None], ~same[:, None, :])
    hardest = ops.min(ops.where(farther, distance[:, None, :], 1e6), axis=-1)
    easiest = ops.max(ops.where(~same, distance, 0.0), axis=-1, keepdims=True)
    negative = ops.where(ops.any(farther, axis=-1), hardest, easiest)
    positive = ops.cast(same, z.dtype) - ops.eye(ops.shape(z)[0], dtype=z.dtype)
    loss = ops.relu(margin + distance - negative) * positive
    return ops.sum(loss) / ops.maximum(ops.sum(positive), 1.0)


def supervised_contrastive(y, z, temperature=0.5):
    """Khosla et al. 2020, equation 2."""
    z = _normalized(z)
    other = 1 - ops.eye(ops.shape(z)[0], dtype=z.dtype)
    logits = ops.matmul(z, ops.transpose(z)) / temperature
    log_probability = logits - ops.log(
        ops.sum(ops.exp(logits) * other, axis=-1, keepdims=True) + 1e-6
    )
    positive = ops.cast(_same_label(y), z.dtype) * other
    count = ops.maximum(ops.sum(positive, axis=-1), 1.0)
    return -ops.mean(ops.sum(positive * log_probability, axis=-1) / count)


def cox(y, z):
    """Cox 1972: partial likelihood; ``y[:, 0]`` is the time, ``y[:, 1] > 0`` an event."""
    time, event, risk = y[:, 0], ops.cast(y[:, 1] > 0, z.dtype), z[:, 0]
    at_risk = ops.cast(time[None] >= time[:, None], z.dtype)
    log_sum = ops.log(ops.sum(at_risk * ops.exp(risk)[None], axis=-1))
    return -ops.sum(event * (risk - log_sum)) / ops.maximum(ops.sum(event), 1.0)


def concordance(y, z):
    """Lin 1989: one minus the concordance correlation coefficient."""
    y, z = ops.cast(y[:, 0], z.dtype), z[:, 0]
    covariance = ops.mean((y - ops.mean(y)) * (z - ops.mean(z)))
    apart = ops.square(ops.mean(y) - ops.mean(z))
    return 1 - 2 * covariance / (ops.var(y) + ops.var(z) + apart + 1e-3)


def batch_dice(y, z):
    """Milletari et al. 2016, with the sums taken over the whole batch."""
    target, found = ops.cast(y > 0, z.dtype), ops.sigmoid(z[:, : y.shape[1]])
    return 1 - 2 * ops.sum(target * found) / (ops.sum(target) + ops.sum(found) + 1e-3)


def pairwise_ranking(y, z):
    """Yan et al. 2003: a smooth number of the pairs of which the order is wrong."""
    positive, score = ops.cast(y[:, 0] > 0, z.dtype), z[:, 0]
    wrong = ops.sigmoid(score[None] - score[:, None])
    pairs = positive[:, None] * (1 - positive)[None]
    return ops.sum(pairs * wrong) / ops.maximum(ops.sum(pairs), 1.0)


#: Each loss, and the values that the weights of its own begin with.
LOSSES = {
    info_nce: (np.log(5.0),),
    siglip: (np.log(5.0), -2.0),
    triplet_semi_hard: (),
    supervised_contrastive: (),
    cox: (),
    concordance: (),
    batch_dice: (),
    pairwise_ranking: (),
}


def own_weights(loss):
    """Return the weights of `loss` as variables."""
    return [
        keras.Variable(value, name=f"own_{i}", dtype=keras.config.floatx())
        for i, value in enumerate(LOSSES[loss])
    ]


class CompiledLoss(keras.losses.Loss):
    """One of `LOSSES` for `compile`: one number for a batch."""

    def __init__(self, function):
        super().__init__(reduction=None, name=function.__name__, dtype=keras.config.floatx())
        self.function = function
        self.variables = own_weights(function)

    def call(self, y_true, y_pred):
        return self.function(y_true, y_pred, *(v.value for v in self.variables))


class OwnLoss(keras.Model):
    """A model that overrides `compute_loss` with one of `LOSSES`."""

    def take(self, function):
        """Use `function` from now on; return the model."""
        self.function = function
        self.own = own_weights(function)
        return self

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        added = sum(self.losses) if self.losses else 0.0
        return self.function(y, y_pred, *(v.value for v in self.own)) + added
