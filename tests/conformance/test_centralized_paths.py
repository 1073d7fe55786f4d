"""Centralized optimizers take one path with and without `microbatch`, tagged or not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tensorflow_ranger as ranger
from tests.marks import first
from tests.models import assert_same_weights, fit

MAKERS = {
    "RangerOptimizer": lambda: ranger.RangerOptimizer(0.05, accumulation_steps=1, centralize=True),
    "Ranger": lambda: ranger.Ranger(0.1, lookahead=ranger.Lookahead(2, 0.5)),
    "Ranger21": lambda: ranger.Ranger21(0.01, total_updates=6, warm_up=False),
}


class Embeddings(layers.Layer):
    """Tokens, positions, and a class token before them."""

    def build(self, _):
        self.words = self.add_weight(name="token_embedding", shape=(7, 6))
        self.positions = self.add_weight(name="pos_embed", shape=(1, 5, 6))
        self.first = self.add_weight(name="cls_token", shape=(1, 1, 6), initializer="normal")

    def call(self, ids):
        tokens = ops.take(self.words, ids, axis=0)
        first = ops.broadcast_to(self.first, (ops.shape(tokens)[0], 1, 6))
        return ops.concatenate([first, tokens], axis=1) + self.positions


def encoder(optimizer):
    """Return a compiled encoder in which the fan-in of `mixer` is in doubt until it is tagged."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    ids = keras.Input((4,), dtype="int32")
    x = Embeddings()(ids)
    # The bias of the keys has no gradient but rounding, which Ranger21 would scale up.
    x += layers.MultiHeadAttention(2, 3, use_bias=False, name="self_attention")(x, x)
    x += layers.EinsumDense("btd,ndh->btnh", (5, 2, 6), name="mixer")(x)[:, :, 0]
    x = layers.LayerNormalization()(x)
    model = keras.Model(ids, layers.Dense(2, name="pooler")(x[:, 0]))
    model.compile(optimizer, "mse", jit_compile=keras.config.backend() == "jax")
    return model


def trained(model):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 7, (16, 4)), rng.normal(size=(16, 2)).astype("float32")
    fit(model, x, y, batch_size=8, epochs=2)
    return model


@first
@pytest.mark.parametrize("name", MAKERS)
def test_microbatch_takes_the_path_of_fit(name):
    make = MAKERS[name]
    untagged, tagged = [], []
    for wrap in (lambda model: model, lambda model: ranger.microbatch(model, 3)):
        with pytest.warns(UserWarning, match=r"their fan-in: mixer/kernel \(2, 6, 6\)\. Before"):
            untagged.append(trained(wrap(encoder(make()))))
        assert not hasattr(untagged[-1].get_layer("mixer").kernel, "fan_in_axes")
        # Without a warning, which would be an error.
        tagged.append(trained(wrap(ranger.tag_fan_in(encoder(make())))))
    assert_same_weights(untagged[1], untagged[0], 1e-5)
    assert_same_weights(tagged[1], tagged[0], 1e-5)
    kernels = [
        np.asarray(ops.convert_to_numpy(m.get_layer("mixer").kernel))
        for m in (tagged[0], untagged[0])
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
