"""Padded sequences in float64, which replicas trim: the oracle is plain `fit` on padded batches."""

import keras
import numpy as np
from keras import layers

import tensorflow_ranger as ranger
from tests.distributed.cases import BATCH, Parts
from tests.losses import neighbours, of_tags

STEPS, OTHER_STEPS, WORDS, EPOCHS = 4, 3, 20, 3  # JAX compiles for each length
SAMPLES = 3 * BATCH + 22  # 12 updates
RNG = np.random.default_rng(0)


def sentences(steps):
    """Return words, behind which stand zeros."""
    real = np.arange(steps) < RNG.integers(1, steps + 1, SAMPLES)[:, None]
    return RNG.integers(1, WORDS, (SAMPLES, steps)) * real


X, OTHER = sentences(STEPS), sentences(OTHER_STEPS)
NUMBERS, TAGS = RNG.normal(size=(SAMPLES, 2)), RNG.integers(0, 3, (SAMPLES, STEPS))
WEIGHTS = RNG.uniform(0.5, 1.5, (SAMPLES, STEPS)) * (X > 0)


def embedded():
    """Return an input of words, and their vectors."""
    words = keras.Input((None,), dtype="int32")
    return words, layers.Embedding(WORDS, 4, mask_zero=True)(words)


def drawing():
    """Return a tagger that draws random numbers for its words."""
    words, x = embedded()
    x = layers.SpatialDropout1D(0.2)(layers.GaussianNoise(0.1)(layers.Dropout(0.3)(x)))
    return keras.Model(words, layers.Dense(3)(x))


def tagger():
    """Return a tagger whose outputs have masks."""
    words, x = embedded()
    return keras.Model(words, layers.Dense(3, activation="tanh")(x))


def two_inputs():
    """Return a network over two sentences, each with a time axis."""
    words, x = embedded()
    others, z = embedded()
    both = layers.Concatenate()([layers.GRU(4)(x), layers.GlobalAveragePooling1D()(z)])
    return keras.Model([words, others], layers.Dense(2)(both))


def number():
    """Return a network that makes numbers of a sentence."""
    words, x = embedded()
    return keras.Model(words, layers.Dense(2)(layers.Dropout(0.3)(layers.GRU(4)(x))))


def squares():
    """Return the mean of the squared differences."""
    return "mse"


def of_words():
    """Return the cross-entropy of tags."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


#: Functions that return model and loss; inputs, targets, and sample weights that may be None.
CASES = {
    "drawing": (drawing, of_words, (X, TAGS, WEIGHTS)),
    "two_inputs": (two_inputs, squares, ((X, OTHER), NUMBERS)),
    # The replicas cannot share the last batch evenly.
    "whole": (number, lambda: neighbours, (X[:-1], NUMBERS[:-1])),
    "whole_tags": (tagger, lambda: of_tags, (X, np.where(X > 0, TAGS, -1))),
}
QUICK = ["drawing", "whole_tags"]  # looked at in every suite, the others in the thorough run


def trained(name, here, size=None):
    """Return the weights and the losses of a case, in micro-batches or by plain `fit`."""
    build, loss, arrays = CASES[name]
    with here.scope():
        keras.utils.set_random_seed(1)
        model = build()
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            loss(),
            jit_compile=keras.config.backend() == "jax",
        )
        if size is not None:
            ranger.microbatch(model, size, padding=0)
    fed = (Parts(arrays, here.process, here.feeds),) if here.feeds > 1 else arrays[:2]
    settings = {}
    if here.feeds == 1:
        settings = {"batch_size": BATCH, "sample_weight": arrays[2] if len(arrays) > 2 else None}
    history = model.fit(*fed, shuffle=False, epochs=EPOCHS, verbose=0, **settings)
    return {
        "weights": [weight.tolist() for weight in model.get_weights()],
        "loss": history.history["loss"],
        "plan": str(getattr(model, "microbatch_plan", "")),
    }
