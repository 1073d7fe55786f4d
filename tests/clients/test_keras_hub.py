"""KerasHub's models, made from configurations."""

import keras
import keras_hub
import numpy as np
import pytest

from tests.clients.whole_and_parts import (
    COMPILE,
    SAMPLES,
    assert_parts_equal_whole,
    freeze_batch_normalization,
)

pytestmark = pytest.mark.usefixtures("float64")

VOCABULARY = 30
CLASSES = 3
LENGTH = 8
RANDOM = np.random.default_rng(0)
# Sentences of uneven length: every micro-batch has another number of tokens that count.
MASK = np.arange(LENGTH) < RANDOM.integers(2, LENGTH + 1, size=(SAMPLES, 1))
TOKENS = np.where(MASK, RANDOM.integers(1, VOCABULARY, size=(SAMPLES, LENGTH)), 0)
IMAGES = RANDOM.normal(size=(SAMPLES, 16, 16, 3))
LABELS = {
    "y": RANDOM.integers(0, CLASSES, size=SAMPLES),
    "sample_weight": RANDOM.uniform(0.5, 2, size=SAMPLES),
}


def compiled(model, optimizer=None):
    model.compile(
        optimizer=optimizer or keras.optimizers.Adam(0.01, epsilon=1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        **COMPILE,
    )
    return model


def bert_classifier(optimizer):
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=LENGTH,
        dropout=0.0,
    )
    model = keras_hub.models.BertTextClassifier(backbone, CLASSES, dropout=0.0)
    return compiled(model, optimizer)


SENTENCES = {
    "token_ids": TOKENS,
    "segment_ids": np.zeros_like(TOKENS),
    "padding_mask": MASK.astype("int32"),
}


def test_bert_classifier():
    assert_parts_equal_whole(
        lambda: bert_classifier(keras.optimizers.SGD(0.1, momentum=0.9)), {"x": SENTENCES, **LABELS}
    )


@pytest.mark.xfail(
    keras.config.backend() == "tensorflow",
    reason="On TensorFlow, Keras' adaptive optimizers square duplicate rows of an embedding's "
    "gradient one by one; a sum over micro-batches is dense.",
)
def test_bert_classifier_with_an_adaptive_optimizer():
    assert_parts_equal_whole(
        lambda: bert_classifier(keras.optimizers.AdamW(0.01, epsilon=1e-3)),
        {"x": SENTENCES, **LABELS},
    )


def gemma_with_lora():
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        head_dim=4,
    )
    backbone.enable_lora(rank=2)
    return compiled(keras_hub.models.GemmaCausalLM(backbone))


def test_gemma_with_lora():
    assert_parts_equal_whole(
        gemma_with_lora,
        {
            "x": {"token_ids": TOKENS, "padding_mask": MASK.astype("int32")},
            "y": np.roll(TOKENS, -1, axis=1),
            "sample_weight": np.roll(MASK, -1, axis=1).astype("float64"),
        },
    )


def vit_classifier():
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=(8, 8),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    return compiled(keras_hub.models.ViTImageClassifier(backbone, CLASSES))


def test_vit_classifier():
    assert_parts_equal_whole(vit_classifier, {"x": IMAGES, **LABELS})


def mobilenet_classifier():
    backbone = keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[8, 12], [16, 16]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[4, 4], [8, 8]],
        stackwise_kernel_size=[[3, 3], [5, 3]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 1]],
        output_num_filters=16,
        depthwise_filters=4,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=16,
        squeeze_and_excite=0.5,
        input_num_filters=4,
        image_shape=(16, 16, 3),
    )
    return compiled(keras_hub.models.MobileNetImageClassifier(backbone, CLASSES))


def frozen_mobilenet_classifier():
    model = mobilenet_classifier()
    freeze_batch_normalization(model)
    return model


def test_mobilenet_classifier_with_frozen_statistics():
    assert_parts_equal_whole(frozen_mobilenet_classifier, {"x": IMAGES, **LABELS})


def test_mobilenet_classifier_whose_batch_is_one_micro_batch():
    assert_parts_equal_whole(mobilenet_classifier, {"x": IMAGES, **LABELS}, size=7)
