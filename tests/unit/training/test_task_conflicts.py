"""TaskConflicts: what it logs are the angles that NumPy finds between the tasks' gradients."""

import keras
import numpy as np
import pytest
from keras import ops

import tensorflow_ranger as ranger
from tests.marks import first
from tests.models import assert_same_weights, fit

BACKEND = keras.config.backend()
SAMPLES, BATCH, MICRO_BATCH, RATE, EPOCHS = 50, 20, 8, 0.05, 3
NAMES = ("a", "b", "c")
PAIRS = (("a", "b"), ("a", "c"), ("b", "c"))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SAMPLES, 4)).astype("float32")
# Two tasks want the opposite of each other, but for noise; the third is by itself.
Y = {
    "a": X[:, :1] + RNG.normal(size=(SAMPLES, 1)),
    "b": -X[:, :1] + RNG.normal(size=(SAMPLES, 1)),
    "c": X[:, 1:2] + RNG.normal(size=(SAMPLES, 1)),
}


def network(loss_weights=None):
    """Return a linear model with one output per task."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(3, use_bias=False, name="shared")(inputs)
    outputs = {name: keras.layers.Dense(1, use_bias=False, name=name)(shared) for name in NAMES}
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(RATE),
        dict.fromkeys(NAMES, "mse"),
        loss_weights=loss_weights,
        jit_compile=BACKEND == "jax",
    )
    return model


def train(model, *callbacks, epochs=EPOCHS, **settings):
    return fit(model, X, Y, BATCH, epochs, callbacks=list(callbacks), **settings).history


def twin(epochs=EPOCHS):
    """Return the mean cosine and the share of conflicts of each pair, for each epoch of a sum."""
    model = network()
    shared = ops.convert_to_numpy(model.get_layer("shared").kernel).astype("float64")
    heads = {n: ops.convert_to_numpy(model.get_layer(n).kernel).astype("float64") for n in NAMES}
    cosines, conflicts = [], []
    for _ in range(epochs):
        seen = []
        for start in range(0, SAMPLES, BATCH):
            x = X[start : start + BATCH]
            slopes = {
                n: 2 * (x @ shared @ heads[n] - Y[n][start : start + BATCH]) / len(x) for n in NAMES
            }
            found = {n: x.T @ slopes[n] @ heads[n].T for n in NAMES}
            heads = {n: heads[n] - RATE * (x @ shared).T @ slopes[n] for n in NAMES}
            shared = shared - RATE * sum(found.values())
            lengths = {n: np.sqrt((found[n] ** 2).sum()) for n in NAMES}
            seen.append([(found[i] * found[j]).sum() / lengths[i] / lengths[j] for i, j in PAIRS])
        cosines.append(np.mean(seen, axis=0))
        conflicts.append(np.mean(np.array(seen) < 0, axis=0))
    return np.array(cosines), np.array(conflicts)


def assert_logged(history, cosines, conflicts):
    for place, (one, other) in enumerate(PAIRS):
        logged = history[f"cosine_{one}_{other}"]
        np.testing.assert_allclose(logged, cosines[:, place], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(history[f"conflict_{one}_{other}"], conflicts[:, place])


def test_the_twin_sees_both_kinds_of_batches():
    cosines, conflicts = twin()
    assert np.abs(cosines[0] - cosines[-1]).max() > 0.01
    assert ((conflicts > 0) & (conflicts < 1)).any()


@pytest.mark.parametrize("size", [None, MICRO_BATCH])
def test_each_epoch_has_its_own_angles(size):
    model = ranger.microbatch(ranger.multitask(network(), "sum"), size)
    history = train(model, ranger.callbacks.TaskConflicts(), validation_data=(X, Y))
    assert_logged(history, *twin())
    assert "val_loss" in history
    assert not [name for name in history if name.startswith(("val_cosine", "val_conflict"))]
    expected = network()
    train(expected)
    assert_same_weights(model, expected)


def test_loss_weights_change_no_angle():
    plain, weighted = (
        train(
            ranger.multitask(network(weights), "sum"),
            ranger.callbacks.TaskConflicts(),
            epochs=1,
            steps_per_epoch=1,
        )
        for weights in (None, {"a": 1e-3, "b": 2.0, "c": 100.0})
    )
    for one, other in PAIRS:
        name = f"cosine_{one}_{other}"
        np.testing.assert_allclose(weighted[name], plain[name], rtol=1e-4, err_msg=name)


@first
def test_groups_are_the_tasks():
    model = ranger.multitask(network(), "mgda", tasks={"x": ["a", "c"], "y": ["b"]})
    history = train(model, ranger.callbacks.TaskConflicts())
    assert {name for name in history if name.startswith("co")} == {"cosine_x_y", "conflict_x_y"}
    assert -1 <= min(history["cosine_x_y"]) <= max(history["cosine_x_y"]) <= 1


@first
def test_a_task_without_a_gradient_has_no_angle():
    model = ranger.multitask(network(loss_weights={"a": 1.0, "b": 1.0, "c": 0.0}), "pcgrad")
    history = train(model, ranger.callbacks.TaskConflicts())
    for kind in ("cosine", "conflict"):
        assert np.isnan([history[f"{kind}_a_c"], history[f"{kind}_b_c"]]).all()
        assert np.isfinite(history[f"{kind}_a_b"]).all()


@first
def test_a_task_without_weights_has_no_angle():
    """An output that is the input: on PyTorch it has nothing to run backward through."""
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(3, name="shared")(inputs)
    outputs = {name: keras.layers.Dense(1, name=name)(shared) for name in "ab"}
    model = keras.Model(inputs, outputs | {"c": keras.layers.Identity(name="c")(inputs)})
    model.compile("sgd", dict.fromkeys(NAMES, "mse"), jit_compile=BACKEND == "jax")
    ranger.multitask(model, "upgrad")
    history = train(model, ranger.callbacks.TaskConflicts())
    assert np.isnan([history["cosine_a_c"], history["conflict_b_c"]]).all()
    assert np.isfinite(history["cosine_a_b"]).all()
    assert np.isfinite(model.get_weights()[0]).all()


def test_the_angle_is_that_on_the_weights_that_both_reach():
    """The third task shares one layer with each of the others, which share none."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    left, right = (keras.layers.Dense(3, use_bias=False, name=n)(inputs) for n in ("l", "r"))
    outputs = {
        "a": keras.layers.Dense(1, use_bias=False, name="a")(left),
        "b": keras.layers.Dense(1, use_bias=False, name="b")(right),
        "c": keras.layers.Dense(1, use_bias=False, name="c")(
            keras.layers.Concatenate()([left, right])
        ),
    }
    model = keras.Model(inputs, outputs)
    model.compile("sgd", dict.fromkeys(NAMES, "mse"), jit_compile=BACKEND == "jax")
    weights = {
        layer.name: ops.convert_to_numpy(layer.kernel).astype("float64")
        for layer in model.layers
        if layer.weights
    }
    hidden = X @ weights["l"], X @ weights["r"]
    residuals = {
        "a": hidden[0] @ weights["a"] - Y["a"],
        "b": hidden[1] @ weights["b"] - Y["b"],
        "c": np.hstack(hidden) @ weights["c"] - Y["c"],
    }

    def cosine(name, own, of_c):
        one = (X.T @ residuals[name] @ own.T).ravel()
        other = (X.T @ residuals["c"] @ of_c.T).ravel()
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    ranger.multitask(model, "sum")
    callbacks = [ranger.callbacks.TaskConflicts()]
    history = fit(model, X, Y, SAMPLES, callbacks=callbacks).history
    expected = cosine("a", weights["a"], weights["c"][:3])
    np.testing.assert_allclose(history["cosine_a_c"], expected, rtol=1e-4)
    expected = cosine("b", weights["b"], weights["c"][3:])
    np.testing.assert_allclose(history["cosine_b_c"], expected, rtol=1e-4)
    assert np.isnan([history["cosine_a_b"], history["conflict_a_b"]]).all()


@first
def test_later_callbacks_see_them():
    seen = {}
    later = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.update(logs))
    model = ranger.multitask(network(), "sum")
    history = train(model, ranger.callbacks.TaskConflicts(), later, epochs=1)
    assert seen["conflict_a_b"] == history["conflict_a_b"][0]


@first
def test_it_may_come_and_go_between_fits():
    """After a fit without it, on a compiled step; and after another rule was chosen."""
    model = ranger.multitask(network(), "sum")
    initial = model.get_weights()
    assert "cosine_a_b" not in train(model)
    model.set_weights(initial)
    assert_logged(train(model, ranger.callbacks.TaskConflicts()), *twin())
    step = model.train_function
    model.set_weights(initial)
    assert_logged(train(model, ranger.callbacks.TaskConflicts()), *twin())
    assert model.train_function is step  # nothing is compiled again
    ranger.multitask(model, "pcgrad")
    ranger.multitask(model, "sum")
    model.set_weights(initial)
    assert_logged(train(model, ranger.callbacks.TaskConflicts()), *twin())
    ranger.multitask(model, None)
    model.set_weights(initial)
    assert "cosine_a_b" not in train(model)


def test_a_model_without_multitask_is_refused():
    with pytest.raises(ValueError, match=r"Call multitask\(model, combine=.sum.\)"):
        train(network(), ranger.callbacks.TaskConflicts())
