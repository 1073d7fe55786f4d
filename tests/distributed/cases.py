"""What every engine must train to the same weights as one process on the whole batch.

A case is a model, an optimizer, data and the micro-batches it trains in. `run` trains it on the
part of each batch that a process is given and returns what the tests compare.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import tensorflow_ranger as ranger

BATCH = 32
EPOCHS = 2
BATCHES = 10  # an epoch: 20 updates in all


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to train.

    Attributes:
        optimizer: Function that returns the optimizer.
        model: Function that returns the model.
        size: Samples of a micro-batch on each replica, or None for Keras' own train step.
        masked: Whether the targets are tags of words, masked and weighted.
        last: Samples of an epoch's last batch.
        poisoned: Row that holds a NaN, or None.
        has_loss: Whether the model itself has a loss, which compares all samples that it is given.
        loss: A loss per sample in which samples meet, or None for Keras' cross-entropy.
        padding: What micro-batches are trimmed of, or None.
        has_norms: Whether the norms of gradients are logged.
    """

    optimizer: Callable
    model: Callable
    size: int | None = 3
    masked: bool = False
    last: int = BATCH  # another number takes another compilation
    poisoned: int | None = None
    has_loss: bool = False
    loss: Callable | None = None
    padding: int | None = None
    has_norms: bool = False


def classifier(*layers):
    """Return a network of `layers` over 6 numbers."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2"),
            *layers,
            keras.layers.Dense(3),
        ]
    )


def normalized():
    """Return a network with batch statistics."""
    return classifier(keras.layers.BatchNormalization())


def drawing():
    """Return a network whose layers draw random numbers."""
    keras.utils.set_random_seed(1)  # from which layers have their seeds
    layers = keras.layers
    return classifier(layers.Dropout(0.3), layers.GaussianNoise(0.1), layers.Dropout(0.2, seed=1))


def tagger(length: int | None = 5):
    """Return a network that tags the words of sentences of up to 5."""
    keras.utils.set_random_seed(1)
    words = keras.Input((length,))
    vectors = keras.layers.Embedding(12, 8, mask_zero=True)(words)
    hidden = keras.layers.Dense(8, activation="tanh")(vectors)
    return keras.Model(words, keras.layers.Dense(3)(hidden))


def _summed_weights(model):
    # Of a table TensorFlow's replicas gather the rows that they looked up.
    gathered = keras.config.backend() == "tensorflow"
    return [w for w in model.trainable_variables if not (gathered and w.name == "embeddings")]


def summed_by_tensorflow():
    """Return how many losses `tf.distribute` adds up, by which a loss must be divided there."""
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


class Contrasting(keras.Model):
    """A network whose loss compares each sample with all others."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = keras.Variable(0.5, name="scale")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        assert x is not None
        assert y_pred is not None
        ops = keras.ops
        logits = ops.exp(self.scale) * ops.matmul(y_pred, ops.transpose(y_pred))
        logits = logits - 1e6 * ops.eye(ops.shape(y_pred)[0], dtype=logits.dtype)
        y = ops.reshape(ops.cast(y, "int32"), (-1, 1))
        alike = ops.cast(ops.equal(y, ops.transpose(y)), logits.dtype)
        losses = -ops.mean(alike * ops.maximum(ops.log_softmax(logits), -50.0), axis=-1)
        weight = ops.reshape(ops.cast(sample_weight, logits.dtype), (-1,))
        own = ops.sum(weight * losses) / ops.sum(weight)
        loss = own + 0.1 * ops.mean(x[:, 0] * y_pred[:, 0]) + sum(self.losses)
        return loss / summed_by_tensorflow()


def balanced(y_true, y_pred):
    """Return the cross-entropy of each sample, by how rare its class is in the batch."""
    ops = keras.ops
    labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
    shares = ops.mean(ops.one_hot(labels, 3), axis=0)
    losses = keras.losses.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
    return losses / (0.1 + ops.take(shares, labels))


def contrasting():
    """Return a network whose loss is one of the whole batch."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2")(inputs)
    return Contrasting(inputs, keras.layers.Dense(3)(hidden))


def sgd(learning_rate=0.1):
    """Return SGD that clips, which is right after the sum over the replicas alone."""
    return keras.optimizers.SGD(learning_rate, momentum=0.9, global_clipnorm=0.3)


def windows(steps=2):
    """Return an optimizer that updates every second time, or after more steps."""
    return ranger.RangerOptimizer(
        inner=sgd(), accumulation_steps=steps, lookahead=ranger.Lookahead(k=2)
    )


CASES = {
    "masks": Case(sgd, tagger, masked=True, last=22),
    "padded": Case(sgd, lambda: tagger(None), masked=True, last=22, padding=0),
    "batch_normalization": Case(lambda: sgd(0.02), normalized, size=2),
    # Replicas have the micro-batches of one process.
    "norms": Case(sgd, classifier, size=4, has_norms=True),
    "norms_of_windows": Case(windows, classifier, size=4, has_norms=True),
    # Without clipping, which Keras on TensorFlow does before the sum over the replicas.
    "plain": Case(lambda: keras.optimizers.SGD(0.1), classifier, size=None, has_norms=True),
    "uneven": Case(sgd, classifier, last=21),
    "contrasting": Case(sgd, contrasting, last=21, has_loss=True),
    "contrasting_even": Case(sgd, contrasting, has_loss=True),
    "balanced": Case(sgd, classifier, loss=balanced),
    "drawing": Case(sgd, drawing, last=21),
    "drawing_even": Case(sgd, drawing),
    "ranger": Case(lambda: ranger.Ranger(0.02), classifier),
    "streaming": Case(windows, classifier, size=None, has_norms=True),
    # One sample is of one replica: all leave its micro-batch out.
    "not_finite": Case(windows, classifier, size=None, poisoned=BATCH + 1),
    # The first epoch ends in the middle of a window.
    "saved": Case(lambda: windows(steps=3), classifier, size=None),
}


def data(case):
    """Return ``(x, y, sample_weight)``."""
    rng = np.random.default_rng(0)
    samples = (BATCHES - 1) * BATCH + case.last
    if not case.masked:
        x = rng.normal(size=(samples, 6)).astype("float32")
        if case.poisoned is not None:
            x[case.poisoned] = np.nan
        return x, rng.integers(0, 3, samples), rng.uniform(0.5, 1.5, samples).astype("float32")
    x = rng.integers(1, 12, (samples, 5))
    # Sentences grow along each batch, so the masses of its parts differ.
    x[np.arange(5) > np.arange(samples)[:, None] % BATCH // 7] = 0
    weights = rng.uniform(0.5, 1.5, (samples, 5)).astype("float32")
    if case.padding is not None:  # on JAX metrics are given no masks
        weights *= x != case.padding
    return x, x % 3, weights


class Parts(keras.utils.PyDataset):
    """The rows of each batch that one of several processes trains on."""

    def __init__(self, arrays, process, processes):
        super().__init__()
        self._arrays, self._process, self._processes = arrays, process, processes

    def __len__(self):
        return -(-len(keras.tree.flatten(self._arrays)[0]) // BATCH)

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return keras.tree.map_structure(
            lambda a: np.array_split(a[rows], self._processes)[self._process], self._arrays
        )


def first_batch(case, here):
    """Return the rows of the first batch that this process feeds, as a tuple of arrays."""
    return Parts(data(case), here.process % here.feeds, here.feeds)[0]


def compiled(case):
    """Return the case's model."""
    model = case.model()
    model.compile(
        case.optimizer(),
        loss=None
        if case.has_loss
        else case.loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{"metrics" if case.padding is None else "weighted_metrics": ["accuracy"]},
    )
    if case.size:
        ranger.microbatch(model, case.size, padding=case.padding)
    return model


def fit(model, case, here, epochs=EPOCHS, **settings):
    """Train on the rows that this process feeds; return the `History`."""
    arrays = data(case)
    if here.feeds > 1:
        fed = (Parts(arrays, here.process, here.feeds),)
    else:
        fed = arrays[:2]
        settings |= {"sample_weight": arrays[2], "batch_size": BATCH}
    if not (case.has_loss or case.loss):  # which Keras computes for each replica's part
        settings |= {"validation_data": held_out(case), "validation_batch_size": BATCH}
    return model.fit(*fed, shuffle=False, epochs=epochs, verbose=0, **settings)


def held_out(case):
    """Return data for validation."""
    # Keras weighs the replicas' means by samples: each is to have the same masks.
    return tuple(
        np.concatenate([array[:8]] * 4) for array in data(dataclasses.replace(case, poisoned=None))
    )


def run(case, here):
    """Train the case; return its results and its model."""
    with here.scope():
        model = compiled(case)
    callbacks = [ranger.callbacks.GradientNorm()] if case.has_norms else []
    history = fit(model, case, here, callbacks=callbacks).history
    optimizer = model.optimizer
    return {
        "weights": [w.tolist() for w in model.get_weights()],
        "history": history,
        "updates": int(keras.ops.convert_to_numpy(optimizer.iterations)),
        "skipped": getattr(optimizer, "skipped_micro_batches", 0),
        "bytes": sum(4 * int(np.prod(w.shape)) for w in _summed_weights(model)),
    }, model
