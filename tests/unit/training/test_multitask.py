"""multitask: the weights are those of a twin in NumPy, whatever stands around it."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend.common import dtypes  # noqa: TID251 (see test_microbatch_cases.py)

import tensorflow_ranger as ranger
from tests.marks import first, first_but
from tests.models import assert_same_weights, fit
from tests.references.task_combination import TWINS

BACKEND = keras.config.backend()
TOLERANCE = 1e-6 if BACKEND == "torch" else 1e-10
SAMPLES, BATCH, MICRO_BATCH, EPOCHS = 40, 20, 8, 2  # micro-batches of 8, 8 and 4
UNEVEN = 50  # batches of 20, 20 and 10
WIDTHS = {"a": 2, "b": 1, "c": 3}
LOSS_WEIGHTS = {"a": 0.5, "b": 3.0, "c": 1.5}
L2 = 0.0625  # exact in float32, to which Keras rounds a constant on TensorFlow
RATE = 0.0625


@pytest.fixture
def exact(float64, monkeypatch):
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")


def sgd():
    return keras.optimizers.SGD(RATE)


def samples(seed=0):
    """Return inputs, targets that want different things of one layer, and sample weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SAMPLES, 4))
    wishes = {"a": x[:, :2], "b": -3 * x[:, :1], "c": x[:, 1:] - 2 * x[:, :3]}
    y = {name: wish + rng.normal(size=wish.shape) for name, wish in wishes.items()}
    return x, y, {name: rng.uniform(0.1, 2, SAMPLES) for name in WIDTHS}


class Trunk(keras.layers.Dense):
    """A dense layer that notes when Python runs it."""

    traces = 0

    def call(self, inputs, training=None):
        Trunk.traces += 1
        return super().call(inputs)


def network(optimizer, kind=keras.Model, trunk: Any = Trunk, **settings):
    """Return a model of three outputs: "a" leaves the trunk, "b" and "c" a layer further on."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    common = trunk(5, activation="tanh", kernel_regularizer=keras.regularizers.L2(L2), name="trunk")
    hidden = common(inputs)
    middle = keras.layers.Dense(4, activation="tanh", name="middle")(hidden)
    layers = {name: keras.layers.Dense(width, name=name) for name, width in WIDTHS.items()}
    outputs = {name: layer(hidden if name == "a" else middle) for name, layer in layers.items()}
    model = kind(inputs, outputs)
    loss = dict.fromkeys(WIDTHS, "mse")
    loss |= {"b": keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")}
    defaults = {"loss": loss, "loss_weights": LOSS_WEIGHTS, "jit_compile": BACKEND == "jax"}
    model.compile(optimizer, **{**defaults, **settings})
    return model


def train(model, epochs=EPOCHS, **settings):
    x, y, sample_weight = samples()
    return fit(model, x, y, BATCH, epochs, sample_weight=sample_weight, **settings)


def gradients_apart(weights, x, y, sample_weight):
    """Return the gradients of each loss over one batch: dicts from a weight's path to an array."""
    hidden = np.tanh(x @ weights["trunk/kernel"] + weights["trunk/bias"])
    middle = np.tanh(hidden @ weights["middle/kernel"] + weights["middle/bias"])
    found = {}
    for name, width in WIDTHS.items():
        gradients = found[name] = {}

        def back(layer, inputs, slopes, gradients=gradients):
            gradients[f"{layer}/kernel"] = inputs.T @ slopes
            gradients[f"{layer}/bias"] = slopes.sum(0)
            return slopes @ weights[f"{layer}/kernel"].T * (1 - inputs**2)

        inputs = hidden if name == "a" else middle
        error = inputs @ weights[f"{name}/kernel"] + weights[f"{name}/bias"] - y[name]
        mass = sample_weight[name].sum() if name == "b" else len(x)
        scale = LOSS_WEIGHTS[name] * sample_weight[name][:, None] / mass / width
        slopes = back(name, inputs, 2 * scale * error)
        if name != "a":
            slopes = back("middle", hidden, slopes)
        back("trunk", x, slopes)
    return found


def joined(rule, tasks):
    """Return the one gradient of the tasks' gradients: by `rule` where two or more have one."""
    paths = {path: part.shape for task in tasks for path, part in task.items()}
    shared = [path for path in paths if sum(path in task for task in tasks) > 1]
    matrix = [
        np.concatenate([task.get(path, np.zeros(paths[path])).ravel() for path in shared])
        for task in tasks
    ]
    ends = np.cumsum([np.prod(paths[path], dtype=int) for path in shared])
    parts = np.split(TWINS[rule](np.array(matrix)), ends[:-1])
    own = {path: part for task in tasks for path, part in task.items() if path not in shared}
    return own | {p: part.reshape(paths[p]) for p, part in zip(shared, parts, strict=True)}


def twin(rule, optimizer, groups=(("a",), ("b",), ("c",))):
    """Return a model updated with the gradients that NumPy finds and combines."""
    model = network(optimizer)
    x, y, sample_weight = samples()
    for start in [*range(0, SAMPLES, BATCH)] * EPOCHS:
        batch = slice(start, start + BATCH)
        weights = {w.path: np.asarray(ops.convert_to_numpy(w), "float64") for w in model.weights}
        batch_y = {name: target[batch] for name, target in y.items()}
        batch_weight = {name: weight[batch] for name, weight in sample_weight.items()}
        apart = gradients_apart(weights, x[batch], batch_y, batch_weight)
        tasks = [
            {
                path: sum(apart[name].get(path, 0.0) for name in group)
                for path in set().union(*(apart[name] for name in group))
            }
            for group in groups
        ]
        gradients = joined(rule, tasks)
        gradients["trunk/kernel"] = gradients["trunk/kernel"] + 2 * L2 * weights["trunk/kernel"]
        optimizer.apply(
            [ops.convert_to_tensor(gradients[w.path], w.dtype) for w in model.trainable_variables],
            model.trainable_variables,
        )
    return model


def assert_far_apart(model, other):
    """Fail unless the models' weights differ, by far more than rounding."""
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    assert max(np.abs(one - two).max() for one, two in pairs) > 1e-3


# The rules, against NumPy


@pytest.mark.parametrize("rule", first_but(["upgrad"], TWINS))
def test_each_rule_gives_the_twins_weights(rule, exact):
    """Alone, and with micro-batches: sums come first, then one combination."""
    expected = twin(rule, sgd())
    if rule != "sum":
        assert_far_apart(expected, twin("sum", sgd()))
    alone = ranger.multitask(network(sgd()), rule)
    before = ranger.microbatch(ranger.multitask(network(sgd()), rule), MICRO_BATCH)
    after = ranger.multitask(ranger.microbatch(network(sgd()), MICRO_BATCH), rule)
    for model in (alone, before, after):
        train(model)
        assert_same_weights(model, expected, TOLERANCE)
    assert_same_weights(before, after, 0)


@pytest.mark.parametrize("rule", first_but(["upgrad"], ["pcgrad", "upgrad"]))
@pytest.mark.parametrize("size", [None, MICRO_BATCH])
def test_tasks_of_several_losses(rule, size, exact):
    """What "b" and "c" alone share is then their task's own, and taken as it is."""
    tasks = {"rest": ["c", "b"], "first": ["a"]}
    model = ranger.multitask(ranger.microbatch(network(sgd()), size), rule, tasks=tasks)
    train(model)
    expected = twin(rule, sgd(), groups=(("b", "c"), ("a",)))
    assert_far_apart(expected, twin(rule, sgd()))
    assert_same_weights(model, expected, TOLERANCE)


OPTIMIZERS = {
    "adam": (lambda: keras.optimizers.Adam(0.05), None),
    "momentum": (lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True), None),
    "clipped": (lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.5), None),
    "RangerOptimizer": (
        lambda: ranger.RangerOptimizer(inner=sgd(), accumulation_steps=1),
        sgd,
    ),
    "Ranger": (lambda: ranger.Ranger(0.1), None),
    "LossScaleOptimizer": (
        lambda: keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=2.0**15),
        sgd,
    ),
}


every_optimizer = pytest.mark.parametrize("name", first_but(["RangerOptimizer"], OPTIMIZERS))


@every_optimizer
def test_optimizers_get_the_twins_gradient(name, exact):
    make, plain = OPTIMIZERS[name]
    model = ranger.multitask(ranger.microbatch(network(make()), MICRO_BATCH), "upgrad")
    train(model)
    expected = twin("upgrad", (plain or make)())
    assert_far_apart(expected, twin("sum", (plain or make)()))
    assert_same_weights(model, expected, 10 * TOLERANCE)


def test_an_overflow_under_a_loss_scale_is_skipped():
    optimizer = keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=2.0**127)
    model = ranger.multitask(network(optimizer), "pcgrad")
    before = model.get_weights()
    x, y, _ = samples()
    model.train_on_batch(x[:8], {name: 1e3 * target[:8] for name, target in y.items()})
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


# "sum", against plain fit


def assert_same_history(history, expected, tolerance):
    assert list(history.history) == list(expected.history)
    for name, values in expected.history.items():
        np.testing.assert_allclose(
            history.history[name], values, rtol=tolerance, atol=tolerance, err_msg=name
        )


def without_angles(history):
    logs = history.history
    history.history = {n: v for n, v in logs.items() if not n.startswith(("cosine_", "conflict_"))}
    return history


@every_optimizer
def test_sum_is_plain_fit(name, exact):
    make, _ = OPTIMIZERS[name]
    """Weights, metrics, the losses of outputs and of validation, over 8 updates.

    `TaskConflicts` looks at the tasks, and so each has a gradient of its own.
    """
    x, y, weights = samples(1)
    settings = {"epochs": 4, "validation_data": (x, y, weights)}
    metrics = {"metrics": {"a": "mae"}, "weighted_metrics": {"b": "mae"}}
    expected = network(make(), **metrics)
    plain = train(expected, **settings)
    model = ranger.multitask(network(make(), **metrics), "sum")
    history = train(model, callbacks=[ranger.callbacks.TaskConflicts()], **settings)
    assert_same_history(without_angles(history), plain, TOLERANCE)
    assert_same_weights(model, expected, TOLERANCE)
    assert {"loss", "a_loss", "b_mae", "val_c_loss"} <= set(plain.history)


class Detached(keras.Model):
    """Two outputs, and a first layer that no loss reaches."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(4)
        self.shared = keras.layers.Dense(4)
        self.heads = {name: keras.layers.Dense(1) for name in "ab"}

    def call(self, inputs):
        features = self.shared(keras.ops.stop_gradient(self.first(inputs)))
        return {name: head(features) for name, head in self.heads.items()}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_first_layer_that_no_loss_reaches():
    x, y, _ = samples()
    trained = []
    for combine in (None, "sum"):
        keras.utils.set_random_seed(1)
        model = Detached()
        model.compile(sgd(), {"a": "mse", "b": "mse"}, jit_compile=BACKEND == "jax")
        ranger.multitask(model, combine)
        callbacks = [ranger.callbacks.TaskConflicts()] if combine else []
        fit(model, x, {"a": y["a"], "b": y["b"]}, BATCH, callbacks=callbacks)
        trained.append(model)
    assert_same_weights(*trained)
    assert int(trained[1].optimizer.iterations) == -(-len(x) // BATCH)


def masked(optimizer):
    """Return a model of two outputs for each unmasked element, with an added loss."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), dtype="int32")
    shared = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    shared = keras.layers.ActivityRegularization(0.1)(shared)
    outputs = [keras.layers.Dense(1, name=name)(shared) for name in ("left", "right")]
    model = keras.Model(inputs, outputs)
    model.compile(optimizer, ["mse", "mae"], jit_compile=BACKEND == "jax")
    return model


def masked_samples():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, (UNEVEN, 6))
    x[np.arange(6) >= rng.integers(1, 7, (UNEVEN, 1))] = 0
    return x.astype("int32"), [rng.normal(size=(UNEVEN, 6, 1)) for _ in range(2)]


@pytest.mark.parametrize("apart", [False, True])
def test_sum_of_masked_losses_and_an_added_one_is_plain_fit(apart, exact):
    x, y = masked_samples()
    expected, model = masked(sgd()), ranger.multitask(masked(sgd()), "sum")
    plain = fit(expected, x, y, BATCH, EPOCHS)
    callbacks = [ranger.callbacks.TaskConflicts()] if apart else []
    history = fit(model, x, y, BATCH, EPOCHS, callbacks=callbacks)
    assert_same_history(without_angles(history), plain, TOLERANCE)
    assert_same_weights(model, expected, TOLERANCE)


@first
def test_micro_batches_of_masked_losses(exact):
    x, y = masked_samples()
    whole = ranger.multitask(masked(sgd()), "upgrad")
    model = ranger.microbatch(ranger.multitask(masked(sgd()), "upgrad"), MICRO_BATCH)
    history = fit(model, x, y, BATCH, EPOCHS)
    assert_same_history(history, fit(whole, x, y, BATCH, EPOCHS), TOLERANCE)
    assert_same_weights(model, whole, TOLERANCE)
    plain = masked(sgd())
    fit(plain, x, y, BATCH, EPOCHS)
    assert_far_apart(plain, model)


# Compiled steps


@pytest.mark.skipif(BACKEND == "torch", reason="runs the model's Python in every micro-batch")
@pytest.mark.parametrize("size", [None, MICRO_BATCH])
def test_no_trace_after_the_first_epoch(size):
    model = ranger.microbatch(ranger.multitask(network(sgd()), "pcgrad"), size)
    train(model, epochs=1)
    traces = Trunk.traces
    train(model, epochs=2)
    assert Trunk.traces == traces


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch.compile's own modules
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"jit_compile": True}, marks=[pytest.mark.thorough] * (BACKEND == "torch")),
        pytest.param({"jit_compile": False}, marks=[pytest.mark.thorough] * (BACKEND == "jax")),
        # On JAX what is not compiled is run eagerly.
        pytest.param(
            {"run_eagerly": True, "jit_compile": False},
            marks=[pytest.mark.thorough] * (BACKEND == "jax"),
        ),
    ],
    ids=["jit_compile", "no jit_compile", "run_eagerly"],
)
def test_compile_settings(settings, exact):
    """A layer that counts would break the graph, so the trunk is Keras' own."""
    model = network(sgd(), trunk=keras.layers.Dense, **settings)
    train(ranger.microbatch(ranger.multitask(model, "pcgrad"), MICRO_BATCH))
    # TensorFlow's XLA rounds float64 more; see test_combinations.py.
    assert_same_weights(model, twin("pcgrad", sgd()), max(TOLERANCE, 1e-9))


@pytest.mark.thorough
@pytest.mark.skipif(BACKEND != "torch", reason="a setting of PyTorch's compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_pytorch_s_settings_stay_as_they_were(exact):
    from torch._functorch import config

    model = network(sgd(), trunk=keras.layers.Dense, jit_compile=True)
    with config.patch(donated_buffer=True):
        train(ranger.microbatch(ranger.multitask(model, "pcgrad"), MICRO_BATCH))
        assert config.donated_buffer


# A model's life


@first
def test_a_saved_model_is_plain(tmp_path):
    model = ranger.multitask(network("adam"), "mgda")
    train(model, callbacks=[ranger.callbacks.TaskConflicts()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Trunk": Trunk})
    assert_same_weights(loaded, model, 0)
    plain = network("adam")
    plain.set_weights(model.get_weights())
    plain.optimizer.build(plain.trainable_variables)
    for variable, saved in zip(plain.optimizer.variables, model.optimizer.variables, strict=True):
        variable.assign(ops.convert_to_numpy(saved))
    history = train(loaded)
    assert_same_history(history, train(plain), 1e-6)
    assert_same_weights(loaded, plain)


@first
@pytest.mark.parametrize("size", [None, MICRO_BATCH])
def test_none_goes_back_to_the_sum(size):
    model = ranger.multitask(network(sgd()), "mgda")
    if size:
        ranger.microbatch(model, size)
    initial = model.get_weights()
    train(model)
    assert_far_apart(model, network(sgd()))
    model.set_weights(initial)
    ranger.multitask(model, None)
    assert ("make_train_function" in vars(model)) is (size is not None)
    train(model)
    expected = network(sgd())
    train(expected)
    assert_same_weights(model, expected)


def test_none_for_a_model_without_tasks():
    model = ranger.multitask(network(sgd()), None)
    expected = network(sgd())
    train(model)
    train(expected)
    assert_same_weights(model, expected, 0)


def test_microbatch_none_keeps_the_tasks(exact):
    model = ranger.microbatch(ranger.multitask(network(sgd()), "mgda"), MICRO_BATCH)
    assert ranger.microbatch(model, None) is model
    train(model)
    assert_same_weights(model, twin("mgda", sgd()), TOLERANCE)


def test_another_rule_between_fits(exact):
    """The step of the first is not used again."""
    model = ranger.multitask(network(sgd()), "sum")
    initial = model.get_weights()
    train(model)
    model.set_weights(initial)
    train(ranger.multitask(model, "mgda"))
    assert_same_weights(model, twin("mgda", sgd()), TOLERANCE)


# What is refused


class OwnLoss(keras.Model):
    def compute_loss(self, *arguments, **settings):
        return super().compute_loss(*arguments, **settings)


class OwnStep(keras.Model):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


@pytest.mark.parametrize(
    ("model", "combine", "tasks", "error", "words"),
    [
        (lambda: network(sgd()), "mean", None, ValueError, "combine must be one of 'sum', 'pcg"),
        (lambda: network(sgd()), "sum", {"a": "a"}, ValueError, "to a list with the names of its"),
        (lambda: network(sgd()), "sum", ["a", "b"], ValueError, "to a list with the names of its"),
        (lambda: network(sgd()), "sum", {"a": []}, ValueError, "to a list with the names of its"),
        (lambda: network(sgd(), OwnStep), "sum", None, ValueError, "OwnStep overrides it"),
        (lambda: network(sgd()).layers[1], "sum", None, TypeError, "multitask needs a keras.Mod"),
    ],
)
def test_refused_at_once(model, combine, tasks, error, words):
    with pytest.raises(error, match=words):
        ranger.multitask(model(), combine, tasks=tasks)


@pytest.mark.parametrize(
    ("model", "tasks", "words"),
    [
        (lambda: network(sgd()), {"x": ["a"], "y": ["b"]}, "got a, b, and the model has a, b, c"),
        (lambda: network(sgd()), {"x": ["a", "b"], "y": ["b", "c"]}, "each compiled loss once"),
        (lambda: network(sgd()), {"x": ["a", "b"], "y": ["d"]}, "got a, b, d"),
        (lambda: network(sgd()), {"x": ["a", "b", "c"]}, "two tasks or more: got x"),
        (lambda: network(sgd(), loss={"b": "mse"}, loss_weights=None), None, "or more: got b"),
        (lambda: network(sgd(), OwnLoss), None, "OwnLoss, which overrides compute_loss"),
        (
            lambda: network(ranger.RangerOptimizer(inner=sgd(), accumulation_steps=4)),
            None,
            "RangerOptimizer with windows of 4",
        ),
        (
            lambda: network(ranger.RangerOptimizer(inner=sgd(), accumulation_steps="auto")),
            None,
            "RangerOptimizer with windows of auto",
        ),
        (
            lambda: network(
                ranger.RangerOptimizer(
                    inner=sgd(), accumulation_steps=ranger.AccumulationSchedule({0: 1, 9: 4})
                )
            ),
            None,
            "RangerOptimizer with windows of a schedule",
        ),
        (
            lambda: network(keras.optimizers.SGD(gradient_accumulation_steps=4)),
            None,
            "SGD with windows of 4",
        ),
        (
            lambda: network(
                keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.SGD(gradient_accumulation_steps=3)
                )
            ),
            None,
            "SGD with windows of 3",
        ),
    ],
)
def test_refused_in_fit(model, tasks, words):
    with pytest.raises(ValueError, match=words):
        train(ranger.multitask(model(), "sum", tasks=tasks))


@first
@pytest.mark.parametrize("measured_before", [False, True])
def test_noise_scale_is_refused(measured_before):
    model = ranger.microbatch(network(sgd()), MICRO_BATCH)
    if measured_before:
        train(model, callbacks=[ranger.callbacks.NoiseScale(verbose=False)])
    ranger.multitask(model, "sum")
    train(model)  # goes on without
    with pytest.raises(ValueError, match="one per task"):
        train(model, callbacks=[ranger.callbacks.NoiseScale()])
