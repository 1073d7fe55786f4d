"""Networks of keras.applications, without their trained weights."""

import keras
import numpy as np
import pytest

from tests.clients.whole_and_parts import (
    COMPILE,
    SAMPLES,
    assert_parts_equal_whole,
    freeze_batch_normalization,
)

pytestmark = pytest.mark.usefixtures("float64")

RANDOM = np.random.default_rng(0)
DATA = {
    "x": RANDOM.normal(size=(SAMPLES, 32, 32, 3)),
    "y": RANDOM.integers(0, 3, size=SAMPLES),
    "sample_weight": RANDOM.uniform(0.5, 2, size=SAMPLES),
}


def compiled(model):
    freeze_batch_normalization(model)
    model.compile(
        keras.optimizers.Adam(1e-3, epsilon=1e-3),
        loss="sparse_categorical_crossentropy",
        weighted_metrics=["accuracy"],
        **COMPILE,
    )
    return model


def mobilenet():
    return compiled(
        keras.applications.MobileNet(
            input_shape=(32, 32, 3), alpha=0.25, dropout=0.0, weights=None, classes=3
        )
    )


def mobilenet_v3():
    return compiled(
        keras.applications.MobileNetV3Small(
            input_shape=(32, 32, 3),
            alpha=0.35,
            dropout_rate=0.0,
            weights=None,
            classes=3,
            include_preprocessing=False,
        )
    )


@pytest.mark.parametrize("build", [mobilenet, mobilenet_v3])
def test_network(build):
    assert_parts_equal_whole(build, DATA, epochs=2)
