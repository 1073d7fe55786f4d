"""A U-Net of medicai, a package for medical images."""

import keras
import numpy as np
import pytest
from medicai.models import DenseNetBackbone, UNet

from tests.clients.whole_and_parts import (
    COMPILE,
    SAMPLES,
    assert_parts_equal_whole,
    freeze_batch_normalization,
)

pytestmark = pytest.mark.usefixtures("float64")

RANDOM = np.random.default_rng(0)
DATA = {
    "x": RANDOM.normal(size=(SAMPLES, 32, 32, 1)),
    "y": np.eye(3)[RANDOM.integers(0, 3, size=(SAMPLES, 32, 32))],
    "sample_weight": RANDOM.uniform(0.5, 2, size=(SAMPLES, 32, 32)),
}


def u_net():
    encoder = DenseNetBackbone(blocks=[1, 1, 1, 1], input_shape=(32, 32, 1), growth_rate=4)
    model = UNet(
        encoder=encoder,
        num_classes=3,
        decoder_filters=(8, 8, 4, 4, 4),
        decoder_block_type="transpose",
        classifier_activation="softmax",
    )
    freeze_batch_normalization(model)
    model.compile(
        keras.optimizers.Adam(0.01, epsilon=1e-3),
        # Of the sparse one, PyTorch cannot take the gradient for images with channels last.
        loss="categorical_crossentropy",
        **COMPILE,
    )
    return model


def test_u_net_with_a_weight_for_each_pixel():
    assert_parts_equal_whole(u_net, DATA)
