"""What `accumulate_gradients` takes for variables and batch, and what it says of anything else."""

import collections

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.backend.frameworks import framework_of
from tensorflow_ranger.training.accumulate_gradients import accumulate_gradients
from tests.unit.training.gradients import (
    BACKEND,
    MODES,
    accumulated,
    assert_close,
    not_jax,
    only_jax,
    only_torch,
    variable,
)

OTHERS = [name for name in ("tensorflow", "jax", "torch") if name != BACKEND]
ROWS = np.ones((5, 1), "float32")


def refused(variables, batch=ROWS):
    """Return the message of the `TypeError` for these arguments."""
    with pytest.raises(TypeError) as caught:
        accumulate_gradients(lambda *_: None, variables, batch, 2)
    return str(caught.value)


def foreign(framework):
    """Return an object that looks like a tensor of `framework`, which need not be installed."""
    base = type("Tensor", (), {"__module__": f"{framework}.core", "shape": (5, 1), "dtype": "f"})
    return type("OwnTensor", (base,), {"__module__": "__main__"})()


def test_objects_belong_to_the_framework_of_their_class():
    assert framework_of(ops.ones(3)) == BACKEND
    assert framework_of(variable(1.0, "float32")) == BACKEND
    for value in (np.ones(3), 1.0, [foreign("torch")], None, {}):
        assert framework_of(value) is None
    assert framework_of(foreign("jaxlib")) == "jax"


@pytest.mark.parametrize("framework", OTHERS)
@pytest.mark.parametrize("held", [lambda x: [x], lambda x: x])
def test_variables_of_another_framework_are_named(framework, held):
    message = refused(held(foreign(framework)))
    assert message == (
        f"variables must be of {BACKEND}, the framework that Keras runs on: got OwnTensor of "
        f"{framework}. Set the environment variable KERAS_BACKEND={framework} before Keras is "
        f"imported, or give variables of {BACKEND}."
    )


@pytest.mark.parametrize("framework", OTHERS)
@pytest.mark.parametrize("batch", [lambda x: x, lambda x: (ROWS, {"y": x})])
def test_a_batch_of_another_framework_is_named(framework, batch):
    message = refused([variable(1.0, "float32")], batch(foreign(framework)))
    assert message.startswith(f"batch must be of {BACKEND}, the framework that Keras runs on: got")
    assert f"Set the environment variable KERAS_BACKEND={framework} before" in message
    assert message.endswith("or give NumPy arrays.")


def test_a_mapping_is_given_to_the_loss_as_a_dict():
    """As is `BatchEncoding` of Transformers, a `UserDict`."""

    class Encoding(dict):
        pass

    def loss_fn(weights, micro_batch):
        encoding, rows = micro_batch
        assert type(encoding) is dict
        assert type(encoding["nested"]) is dict
        return ops.mean(weights[0] * rows * encoding["x"] * encoding["nested"]["y"])

    x = np.arange(5, dtype="float32")[:, None]
    batch = (collections.UserDict(x=x, nested=Encoding(y=2 * ROWS), nothing=None), ROWS)
    weights = [variable(3.0, "float32")]
    function = loss_fn if BACKEND == "jax" else lambda rows: loss_fn(weights, rows)
    value, gradients = accumulate_gradients(function, weights, batch, 2)
    assert_close([value, *gradients], [12.0, 4.0], 1e-6)


def test_a_layer_is_no_list_of_variables():
    layer = keras.layers.Dense(1)
    layer.build((None, 1))
    kind = "a pytree of arrays" if BACKEND == "jax" else "a list of variables"
    remedy = "its trainable_variables"
    if BACKEND == "jax":
        remedy = "their values: [v.value for v in model.trainable_variables]"
    assert refused(layer) == f"variables must be {kind}: got Dense. Give {remedy}."
    kind = "arrays" if BACKEND == "jax" else "variables"
    assert refused([layer]).startswith(f"variables must hold {kind}: got Dense. Give ")


@only_jax
def test_variables_of_keras_are_asked_for_their_values():
    message = refused([keras.Variable(1.0)])
    assert "got Variable. Give their values: [v.value for v in" in message


@only_torch
def test_a_module_is_asked_for_its_parameters():
    import torch

    module = torch.nn.Linear(1, 1)
    assert refused(module) == (
        "variables must be a list of variables: got Linear. Give its parameters()."
    )
    for held in (module.named_parameters(), [module]):
        assert refused(held).endswith("Give model.trainable_variables or module.parameters().")


@not_jax
@pytest.mark.parametrize(
    ("held", "message"),
    [
        (lambda x: {"x": x}, r"got dict\. Give its values, in a list\."),
        (lambda x: x, r"got \w+\. Give \[variable\]\."),
        (lambda x: None, r"got NoneType\. Give model\.trainable_variables or"),
        (lambda x: [("x", x)], r"must hold variables: got tuple\. Give"),
        (lambda x: [ROWS], r"must hold variables: got ndarray\. Give"),
    ],
    ids=["dict", "variable", "none", "pairs", "numpy"],
)
def test_what_is_no_list_of_variables_is_refused(held, message):
    variables = held(variable([1.0], "float32"))
    with pytest.raises(TypeError, match=message):
        accumulate_gradients(lambda rows: None, variables, ROWS, 2)


def test_there_must_be_a_variable():
    with pytest.raises(ValueError, match=r"at least one variable: got none\. A generator such as"):
        accumulate_gradients(lambda *_: None, [], ROWS, 2)


@only_torch
def test_a_generator_that_has_been_used_is_refused():
    import torch

    module = torch.nn.Linear(1, 1)
    parameters = module.parameters()
    accumulate_gradients(lambda rows: module(rows).mean(), parameters, torch.ones(5, 1), 2)
    with pytest.raises(ValueError, match=r"got none.*give list\(module\.parameters\(\)\)"):
        accumulate_gradients(lambda rows: module(rows).mean(), parameters, torch.ones(5, 1), 2)


@not_jax
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "loss",
    [lambda weight, rows: ops.mean(rows), lambda weight, rows: ops.stop_gradient(weight * 2.0)],
    ids=["unused", "detached"],
)
def test_a_loss_that_depends_on_no_variable_is_refused(loss, mode):
    weights = [variable(1.0, "float32"), variable(2.0, "float32")]
    with pytest.raises(ValueError, match="none of the variables: got 2 and no gradient, so noth"):
        accumulated(lambda weights, rows: loss(weights[0], rows), weights, ROWS, 2, mode)


@only_torch
@pytest.mark.parametrize("context", ["no_grad", "inference_mode"])
def test_parameters_that_take_no_gradient_are_refused_and_stay(context):
    import torch

    module = torch.nn.Linear(1, 1).requires_grad_(False)
    with getattr(torch, context)(), pytest.raises(ValueError, match="with requires_grad=True on"):
        accumulate_gradients(
            lambda rows: module(rows).mean(), module.parameters(), torch.ones(5, 1), 2
        )
    assert module.weight.grad is None
