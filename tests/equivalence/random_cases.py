"""Random small trainings: `draw(seed)` gives a `Case`, the same one for the same seed.

A case holds plain values alone. Its repr is the call that makes it again, and a failing case can
be made smaller by editing that call.
"""

import dataclasses

import keras
import numpy as np
from keras import layers, ops

STEPS = 4  # length of sequences
TOKENS = 5  # size of the vocabulary, 0 is the padding
CLASSES = 3
NAMES = ("a", "b", "c")  # of the outputs
REDUCTIONS = ("sum", "sum_over_batch_size", "mean", "mean_with_sample_weight")


@dataclasses.dataclass(frozen=True)
class Head:
    """One output with its loss.

    Args:
        loss: A key of `LOSSES`.
        form: How `compile` is given the loss: "name", "function" or, for a `keras.losses.Loss`,
            its reduction.
        per_token: Whether each step of a sequence has a loss.
    """

    loss: str = "mse"
    form: str = "sum_over_batch_size"
    per_token: bool = False

    def make_loss(self):
        _, _, cls, settings = LOSSES[self.loss]
        if self.form in REDUCTIONS:
            return getattr(keras.losses, cls)(reduction=self.form, **settings)
        return self.loss if self.form == "name" else FUNCTIONS[self.loss]

    def output(self, features, name):
        """Return the output tensor: of every token, or of the mean over them."""
        if len(features.shape) == 3 and not self.per_token:
            features = layers.GlobalAveragePooling1D()(features)
        target, activation, _, _ = LOSSES[self.loss]
        units = CLASSES if target in ("classes", "one hot", "distribution") else 2
        return layers.Dense(units, activation=activation, name=name)(features)

    def targets(self, rng, samples):
        shape = (samples, STEPS) if self.per_token else (samples,)
        target = LOSSES[self.loss][0]
        classes = rng.integers(0, CLASSES, shape)
        return {
            "values": lambda: 0.5 * rng.normal(size=(*shape, 2)),
            "positive": lambda: rng.uniform(0.5, 2, (*shape, 2)),
            "binary": lambda: rng.integers(0, 2, (*shape, 2)).astype("float64"),
            "classes": lambda: classes.astype("int32"),
            "one hot": lambda: np.eye(CLASSES)[classes],
            "distribution": lambda: rng.dirichlet(np.full(CLASSES, 3), shape),
        }[target]()

    def sample_weights(self, rng, samples, kind):
        """Return weights of shape (samples,), (samples, 1) where tokens follow, or per token."""
        steps = (STEPS if kind == "token" else 1,) if self.per_token else ()
        shape = (samples, *steps)
        return rng.uniform(0.2, 2, shape) * (rng.random(shape) < 0.9)


LOGITS, SMOOTH_LOGITS = {"from_logits": True}, {"from_logits": True, "label_smoothing": 0.1}
SPARSE = "SparseCategoricalCrossentropy"
# Of every loss: its targets, the activation of the output, the class and its settings.
LOSSES = {
    "mse": ("values", None, "MeanSquaredError", {}),
    "mae": ("values", None, "MeanAbsoluteError", {}),
    "huber": ("values", None, "Huber", {}),
    "log_cosh": ("values", None, "LogCosh", {}),
    "cosine_similarity": ("values", None, "CosineSimilarity", {}),
    "poisson": ("positive", "softplus", "Poisson", {}),
    "msle": ("positive", "softplus", "MeanSquaredLogarithmicError", {}),
    "mape": ("positive", "softplus", "MeanAbsolutePercentageError", {}),
    "binary_crossentropy": ("binary", "sigmoid", "BinaryCrossentropy", {}),
    "binary logits": ("binary", None, "BinaryCrossentropy", LOGITS),
    "binary_focal_crossentropy": ("binary", "sigmoid", "BinaryFocalCrossentropy", {}),
    "squared_hinge": ("binary", "tanh", "SquaredHinge", {}),
    "categorical_crossentropy": ("one hot", "softmax", "CategoricalCrossentropy", {}),
    "smooth logits": ("one hot", None, "CategoricalCrossentropy", SMOOTH_LOGITS),
    "sparse_categorical_crossentropy": ("classes", "softmax", SPARSE, {}),
    "sparse logits": ("classes", None, SPARSE, LOGITS),
    "kl_divergence": ("distribution", "softmax", "KLDivergence", {}),
    "quartic": ("values", None, "MeanSquaredError", {}),
}
FUNCTIONS = {
    "mae": keras.losses.mean_absolute_error,
    "binary_crossentropy": keras.losses.binary_crossentropy,
    "sparse_categorical_crossentropy": keras.losses.sparse_categorical_crossentropy,
    "quartic": lambda y_true, y_pred: ops.mean((y_true - y_pred) ** 4, axis=-1),
}
# The gradient of these does not depend on the size of an error: over a batch it can cancel to
# zero up to rounding, of which an optimizer that only looks at signs makes a whole step.
KINKED_LOSSES = ("mae", "mape")
SCALE_FREE = ("Lion", "Adafactor", "Muon")

METRICS = {  # of the targets: unweighted and weighted metrics
    "values": (lambda: ["mae"], lambda: ["mse", keras.metrics.RootMeanSquaredError()]),
    "positive": (lambda: ["mape"], lambda: ["mse"]),
    "binary": (lambda: ["binary_accuracy"], lambda: ["mse"]),
    "one hot": (lambda: ["categorical_accuracy"], lambda: ["mse"]),
    "classes": (lambda: ["sparse_categorical_accuracy"],) * 2,
    "distribution": (lambda: ["kl_divergence"], lambda: ["mae"]),
}

OPTIMIZERS = {  # a name: its class and settings
    "SGD": ("SGD", {"learning_rate": 0.1}),
    "momentum": ("SGD", {"learning_rate": 0.05, "momentum": 0.9}),
    "nesterov": ("SGD", {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True}),
    "Adam": ("Adam", {"learning_rate": 0.02}),
    "amsgrad": ("Adam", {"learning_rate": 0.02, "amsgrad": True}),
    "AdamW": ("AdamW", {"learning_rate": 0.02, "weight_decay": 0.1}),
    "Adamax": ("Adamax", {"learning_rate": 0.02}),
    "Adagrad": ("Adagrad", {"learning_rate": 0.05}),
    "RMSprop": ("RMSprop", {"learning_rate": 0.01, "momentum": 0.5, "centered": True}),
    "Lion": ("Lion", {"learning_rate": 0.005}),
    "Nadam": ("Nadam", {"learning_rate": 0.02}),
    "Adadelta": ("Adadelta", {"learning_rate": 0.5}),
    "Adafactor": ("Adafactor", {"learning_rate": 0.02}),
    "Ftrl": ("Ftrl", {"learning_rate": 0.05}),
    "Muon": ("Muon", {"learning_rate": 0.02}),
}
OPTIONS = {
    "none": {},
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.02},
    "weight_decay": {"weight_decay": 0.1},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
    "schedule": {},
}


class MeanSquarePenalty(layers.Layer):
    """Adds the mean square of its inputs to the loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        self.add_loss(0.3 * ops.mean(ops.square(inputs)))
        return inputs


def _attend(heads, **settings):
    layer = layers.MultiHeadAttention(heads, 2, **settings)
    if keras.config.backend() != "jax":
        return lambda features: layer(features, features)
    # JAX's own attention takes the softmax in float32; with scores Keras takes it itself.
    return lambda features: layer(features, features, return_attention_scores=True)[0]


def _list_inputs(settings):
    x = [keras.Input((3,)), keras.Input((3,))]
    hidden = [layers.Dense(3, **TANH, **settings)(part) for part in x]
    return x, layers.Concatenate()(hidden)


def _dict_inputs(settings):
    x = {"left": keras.Input((3,), name="left"), "right": keras.Input((3,), name="right")}
    shared = layers.Dense(4, **TANH, **settings)
    return x, layers.Multiply()([shared(x["left"]), shared(x["right"])])


TANH, SEQUENCE = {"activation": "tanh"}, {"return_sequences": True}
GRU, LSTM = layers.GRU, layers.LSTM
CHAINS = {  # the shape of a sample and the layers, of which one has the drawn settings
    "dense": ((6,), lambda s: [layers.Dense(5, **TANH, **s), layers.Dense(4, "relu")]),
    "conv1d": ((6, 2), lambda s: [layers.Conv1D(3, 3, **TANH, **s), layers.GlobalAvgPool1D()]),
    "conv2d": ((5, 5, 2), lambda s: [layers.Conv2D(3, 2, **TANH, **s), layers.GlobalMaxPool2D()]),
    "lstm": ((STEPS, 3), lambda s: [LSTM(3, **s)]),
    "shared": ((4,), lambda s: [layers.Dense(4, **TANH, **s)] * 2),
}
SEQUENCES = {
    "stacked": ((STEPS, 2), lambda s: [GRU(2, **SEQUENCE, **s), LSTM(2, **SEQUENCE)]),
    "bidirectional": ((STEPS, 2), lambda s: [layers.Bidirectional(GRU(2, **SEQUENCE, **s))]),
    "attention": ((STEPS, 3), lambda s: [_attend(2, **s)]),
    "tokens_lstm": ((STEPS,), lambda s: [LSTM(3, **SEQUENCE, **s)]),
    "tokens_gru": ((STEPS,), lambda s: [layers.Bidirectional(GRU(2, **SEQUENCE, **s))]),
    "tokens_attention": ((STEPS,), lambda s: [_attend(1, **s), layers.Dense(3, **TANH)]),
    "tokens_dense": ((STEPS,), lambda s: [layers.Dense(3, **TANH, **s)]),
    "masking": ((STEPS, 2), lambda s: [layers.Masking(), GRU(3, **SEQUENCE, **s)]),
}
CHAINS.update(SEQUENCES)
BRANCHES = {"list_inputs": _list_inputs, "dict_inputs": _dict_inputs}
BODIES = [*CHAINS, *BRANCHES]
SETTINGS = {  # of the body's layers
    "kernel_regularizer": lambda: keras.regularizers.L2(0.05),
    "bias_regularizer": lambda: keras.regularizers.L1(0.02),
    "activity_regularizer": lambda: keras.regularizers.L2(0.05),
    "kernel_constraint": lambda: keras.constraints.MaxNorm(0.9),
}
SWITCHES = [*SETTINGS, "norm", "penalty", "frozen"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A training: a compiled model, its data and the arguments of `fit`.

    Args:
        seed: Seed of the data and of the initial weights.
        body: A key of `BODIES`.
        heads: The outputs.
        container: "single", "list", "dict" or "nested", of the outputs.
        loss_weights: Whether the outputs are weighted.
        settings: Some of `SWITCHES`.
        weights: "none", "sample", "token", "common" to all outputs, "class".
        metrics: Whether to compile metrics.
        optimizer: A key of `OPTIMIZERS`.
        option: A key of `OPTIONS`.
        batch_size: Samples of an update; `samples` is of an epoch.
        sizes: Samples of a micro-batch, each to be tried.
        epochs: Number of epochs.
    """

    seed: int
    body: str = "dense"
    heads: tuple[Head, ...] = (Head(),)
    container: str = "single"
    loss_weights: bool = False
    settings: tuple[str, ...] = ()
    weights: str = "none"
    metrics: bool = False
    optimizer: str = "SGD"
    option: str = "none"
    batch_size: int = 8
    sizes: tuple[int, ...] = (1, 3, 8)
    samples: int = 24
    epochs: int = 1

    @property
    def tokens(self):
        return self.body.startswith("tokens")

    @property
    def masked(self):
        return self.tokens or self.body == "masking"

    def model(self, **compile_settings):
        """Return the compiled model; every call gives the same weights."""
        model, rng = self._network(), np.random.default_rng(self.seed)
        model.set_weights([rng.normal(0, 0.5, weight.shape) for weight in model.get_weights()])
        if "frozen" in self.settings:
            next(layer for layer in model.layers if layer.weights).trainable = False
        if self.metrics:
            makers = [METRICS[LOSSES[head.loss][0]] for head in self.heads]
            compile_settings["metrics"] = self._pack([plain() for plain, _ in makers])
            compile_settings["weighted_metrics"] = self._pack(
                [weighted() for _, weighted in makers]
            )
        if self.loss_weights:
            compile_settings["loss_weights"] = self._pack([0.5, 2.0, 1.25][: len(self.heads)])
        loss = self._pack([head.make_loss() for head in self.heads])
        model.compile(optimizer=self.make_optimizer(), loss=loss, **compile_settings)
        return model

    def make_optimizer(self):
        name, settings = OPTIMIZERS[self.optimizer]
        settings = {**settings, **OPTIONS[self.option]}
        if self.option == "schedule":
            rate = settings["learning_rate"]
            settings["learning_rate"] = keras.optimizers.schedules.ExponentialDecay(rate, 1, 0.5)
        return getattr(keras.optimizers, name)(**settings)

    def arguments(self):
        """Return the arguments of `fit`."""
        rng, n = np.random.default_rng(self.seed), self.samples
        arguments = {
            "x": self._inputs(rng),
            "y": self._pack([head.targets(rng, n) for head in self.heads]),
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "shuffle": False,
            "verbose": 0,
        }
        if self.weights == "class":
            arguments["class_weight"] = {0: 0.5, 1: 2.0, 2: 1.25}
        elif self.weights == "common":
            arguments["sample_weight"] = self.heads[0].sample_weights(rng, n, "sample")
        elif self.weights != "none":
            # Keras on torch cannot apply a mask of shape (n, STEPS) to weights of shape (n, 1).
            kind = "token" if self.masked else self.weights
            weights = [head.sample_weights(rng, n, kind) for head in self.heads]
            arguments["sample_weight"] = self._pack(weights)
        return arguments

    def _network(self):
        settings = {key: SETTINGS[key]() for key in self.settings if key in SETTINGS}
        if "attention" in self.body and self.optimizer in SCALE_FREE:
            # A softmax does not feel a common shift: the key's bias has a gradient of zero up to
            # rounding, which these optimizers enlarge.
            settings["use_bias"] = False
        if self.body in BRANCHES:
            inputs, features = BRANCHES[self.body](settings)
        else:
            shape, chain = CHAINS[self.body]
            inputs = features = keras.Input(shape, dtype="int32" if self.tokens else None)
            if self.tokens:
                features = layers.Embedding(TOKENS, 3, mask_zero=True)(features)
            for layer in chain(settings):
                features = layer(features)
        if "norm" in self.settings:
            features = layers.LayerNormalization()(features)
        if "penalty" in self.settings:
            features = MeanSquarePenalty()(features)
        named = zip(self.heads, NAMES, strict=False)
        outputs = [head.output(features, name) for head, name in named]
        return keras.Model(inputs, self._pack(outputs))

    def _pack(self, values):
        return {
            "single": lambda: values[0],
            "list": lambda: values,
            "dict": lambda: dict(zip(NAMES, values, strict=False)),
            "nested": lambda: {"a": values[0], "rest": values[1:]},
        }[self.container]()

    def _inputs(self, rng):
        # The mean over no tokens is not a number: only tokens' own losses may meet such samples.
        n, kept = self.samples, np.ones((self.samples, 1), bool)
        if all(head.per_token for head in self.heads):
            kept = rng.random((n, 1)) < 0.9
            kept[:: self.batch_size] = True
        lengths = rng.integers(1, STEPS + 1, (n, 1))
        mask = (np.arange(STEPS) < lengths) & kept
        if self.tokens:
            return np.where(mask, rng.integers(1, TOKENS, (n, STEPS)), 0).astype("int32")
        if self.body in BRANCHES:
            left, right = rng.normal(size=(2, n, 3))
            return [left, right] if self.body == "list_inputs" else {"left": left, "right": right}
        x = rng.normal(size=(n, *CHAINS[self.body][0]))
        return x * mask[:, :, None] if self.body == "masking" else x


def draw(seed):
    """Return the case of a seed: bodies and optimizers take turns, the rest is drawn."""
    rng = np.random.default_rng([2024, seed])
    body = BODIES[seed % len(BODIES)]
    optimizer = list(OPTIMIZERS)[(seed + seed // len(BODIES)) % len(OPTIMIZERS)]
    container = _choose(rng, ["single"] * 5 + ["list", "dict", "dict", "nested"])
    outputs = {"single": 1, "list": 2, "dict": 2, "nested": 3}[container]
    heads = tuple(_draw_head(rng, body, optimizer) for _ in range(outputs))
    batch_size = int(rng.integers(1, 25))
    epochs, batches = _choose(rng, [(1, 3), (1, 4), (1, 5), (2, 2)])
    ragged = int(rng.integers(1, batch_size + 1)) if rng.random() < 0.5 else batch_size
    return Case(
        seed=seed,
        body=body,
        heads=heads,
        container=container,
        loss_weights=bool(rng.random() < 0.5),
        settings=tuple(name for name in SWITCHES if rng.random() < 0.2),
        weights=_draw_weights(rng, heads),
        metrics=bool(rng.random() < 0.5),
        optimizer=optimizer,
        option=_choose(rng, list(OPTIONS)),
        batch_size=batch_size,
        sizes=tuple((1 + rng.permutation(batch_size + 3)[:3]).tolist()),
        samples=(batches - 1) * batch_size + ragged,
        epochs=epochs,
    )


def _choose(rng, values):
    return values[rng.integers(len(values))]


def _draw_head(rng, body, optimizer):
    losses = [loss for loss in LOSSES if loss not in KINKED_LOSSES or optimizer not in SCALE_FREE]
    loss = _choose(rng, losses)
    forms = [*REDUCTIONS]
    if loss == "quartic":
        forms = ["function"]
    elif " " not in loss:
        forms += ["name", *["function"] * (loss in FUNCTIONS)]
    return Head(loss, _choose(rng, forms), bool(body in SEQUENCES and rng.random() < 0.75))


def _draw_weights(rng, heads):
    kinds = ["none", "sample", "sample"]
    if any(head.per_token for head in heads):
        kinds += ["token", "token"]
    elif len(heads) > 1:
        kinds += ["common"]
    elif LOSSES[heads[0].loss][0] in ("classes", "one hot"):
        kinds += ["class", "class"]
    return _choose(rng, kinds)
