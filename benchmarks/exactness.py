"""Print how far training in micro-batches ends from plain `fit`, as JSON.

    KERAS_BACKEND=jax python -m benchmarks.exactness

Every case trains for 20 updates in float64, on whole batches of 24 samples and in micro-batches of
7. The number is the largest difference of a variable, as a fraction of the largest change that
training made to it. `python scripts/exactness.py` runs all backends and writes docs/exactness.md.
"""

import json

import keras
import numpy as np
from keras import layers, ops

import tensorflow_ranger as ranger

BATCH, SIZE, SAMPLES, EPOCHS = 24, 7, 84, 5  # three whole batches and one of 12 samples: 20 updates
LENGTH, WORDS = 6, 30


def numbers():
    """Return vectors and targets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 8))
    return x, np.tanh(x[:, :2] - x[:, 2:4])


def sentences():
    """Return padded words and a tag for each."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LENGTH + 1, size=(SAMPLES, 1))
    words = rng.integers(1, WORDS, size=(SAMPLES, LENGTH)) * (np.arange(LENGTH) < lengths)
    return words, words % 3


def dense(*between, optimizer="adam", loss: object = "mse", **output):
    """Return a compiled network with one hidden layer, and `between` behind it."""
    hidden = layers.Dense(8, activation="tanh", kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((8,)), hidden, *between, layers.Dense(2, **output)])
    model.compile(optimizer, loss)
    return model


def tagger(length: int | None = LENGTH):
    """Return a compiled network that gives every word a tag."""
    words = keras.Input((length,), dtype="int32")
    x = layers.Embedding(WORDS, 8, mask_zero=True)(words)
    model = keras.Model(words, layers.Dense(3, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def two_outputs():
    """Return a compiled network with two weighted losses."""
    inputs = keras.Input((8,))
    x = layers.Dense(8, activation="tanh")(inputs)
    model = keras.Model(inputs, [layers.Dense(2, name=name)(x) for name in "ab"])
    model.compile("adam", ["mse", keras.losses.Huber()], loss_weights=[1.0, 0.3])
    return model


def contrastive():
    """Return a compiled network with a loss that compares all samples of a batch."""

    def info_nce(y, z):
        left, right = ops.normalize(z, axis=-1), ops.normalize(ops.cast(y, z.dtype), axis=-1)
        log_softmax = ops.log_softmax(ops.matmul(left, ops.transpose(right)), axis=-1)
        return -ops.mean(ops.diagonal(log_softmax))

    return dense(loss=info_nce, use_bias=False)


def clipped():
    """Return a network whose optimizer does most of what optimizers do once per update."""
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([5, 12], [0.02, 0.01, 0.005])
    settings = {"weight_decay": 0.1, "global_clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.9}
    return dense(optimizer=keras.optimizers.AdamW(rate, **settings))


def weights():
    """Return a weight for each sample."""
    return np.random.default_rng(1).uniform(0.2, 3, SAMPLES)


CASES = {  # a name: model, data, further arguments of `fit`, of `microbatch`
    "short last batches, regularizer, Adam": (dense, numbers, {}, {}),
    "sample weights": (dense, numbers, {"sample_weight": weights()}, {}),
    "masked words": (tagger, sentences, {}, {}),
    "masked words, padding trimmed": (lambda: tagger(None), sentences, {}, {"padding": 0}),
    "two outputs with loss weights": (
        two_outputs,
        lambda: (numbers()[0], [numbers()[1]] * 2),
        {},
        {},
    ),
    "schedule, weight decay, clipping, moving average": (clipped, numbers, {}, {}),
    "dropout": (lambda: dense(layers.Dropout(0.3)), numbers, {}, {}),
    "loss that compares samples": (contrastive, numbers, {}, {}),
    "layers run again (`rematerialize=True`)": (
        lambda: dense(layers.Dense(8, activation="tanh"), layers.Dense(8)),
        numbers,
        {},
        {"rematerialize": True},
    ),
    "`BatchNormalization`": (lambda: dense(layers.BatchNormalization()), numbers, {}, {}),
}


def trained(make, x, y, settings, fit):
    """Return the trainable weights before and after 20 updates."""
    keras.utils.set_random_seed(1)
    model = make()
    start = values(model)
    ranger.microbatch(model, **settings)
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, **fit)
    assert int(model.optimizer.iterations) == 20
    return start, values(model)


def values(model):
    """Return copies of the trainable weights."""
    return [keras.ops.convert_to_numpy(v.value).copy() for v in model.trainable_variables]


def difference(make, data, fit, settings):
    """Return how far micro-batches end from whole batches."""
    x, y = data()
    # PyTorch's own numbers have no place for each sample: there the whole batch is one micro-batch.
    has_dropout = any(isinstance(layer, layers.Dropout) for layer in make().layers)
    one = BATCH if has_dropout and keras.config.backend() == "torch" else None
    start, whole = trained(make, x, y, {"size": one}, fit)
    _, parts = trained(make, x, y, {"size": SIZE, **settings}, fit)
    return max(
        float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected - before)))
        for before, expected, actual in zip(start, whole, parts, strict=True)
    )


def main():
    """Measure all cases on the active backend."""
    keras.config.set_floatx("float64")
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    print(json.dumps({name: difference(*case) for name, case in CASES.items()}))


if __name__ == "__main__":
    main()
