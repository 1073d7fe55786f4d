"""What `accumulate_gradients` is given: variables and a batch of the framework Keras runs on."""

import collections.abc
import inspect
import numbers

import keras

from tensorflow_ranger.backend import gradients
from tensorflow_ranger.backend.frameworks import framework_of
from tensorflow_ranger.checks.frameworks import require_active_framework


def checked_variables(variables):
    """Return the variables: on JAX the pytree itself, elsewhere a list.

    Raises:
        ValueError: There is no variable.
        TypeError: They are of another framework, or what holds them was given in their place.
    """
    other = f"variables of {keras.config.backend()}"
    require_active_framework("variables", [variables], other)
    on_jax = keras.config.backend() == "jax"
    _require_collection(variables, on_jax)
    if not on_jax:
        variables = list(variables)
    leaves = gradients.leaves(variables) if on_jax else variables
    if not leaves:
        raise ValueError(
            "variables must hold at least one variable: got none. A generator such as "
            "module.parameters() is empty once it has been used: give list(module.parameters())."
        )
    require_active_framework("variables", leaves, other)
    for leaf in leaves:
        _require_variable(leaf, on_jax)
    return variables


def checked_batch(batch):
    """Return the batch, with dicts in place of other mappings, such as a `BatchEncoding`.

    Raises:
        TypeError: It holds tensors of another framework than that which Keras runs on.
    """
    batch = gradients.map_leaves(_plain, batch)
    arrays = [leaf for leaf in gradients.leaves(batch) if hasattr(leaf, "shape")]
    require_active_framework("batch", arrays, "NumPy arrays")
    return batch


def require_function(name, function, parameters):
    """Check that `function` can be called with one argument for each of `parameters`.

    Raises:
        TypeError: It cannot, or is no function.
    """
    called = f"{name}({', '.join(parameters)})"
    if not callable(function):
        raise TypeError(
            f"{name} must be a function, called as {called}: got {type(function).__name__}. Give "
            "the function itself, not what it returns."
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a function that is not written in Python
        return
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise TypeError(
            f"{name} is called as {called}: got a function with the parameters {signature}. Take "
            "the parts of the micro-batch inside the function, such as x, y = micro_batch."
        ) from error


def _plain(leaf):
    if isinstance(leaf, collections.abc.Mapping):
        return gradients.map_leaves(_plain, dict(leaf))
    return leaf


def _require_collection(variables, on_jax):
    """Raise if `variables` is a model, a layer, a module, a mapping or a single variable."""
    remedy = None
    if hasattr(variables, "trainable_variables"):
        remedy = "its trainable_variables"
        if on_jax:
            remedy = "their values: [v.value for v in model.trainable_variables]"
    elif on_jax:
        return
    elif hasattr(variables, "named_parameters"):
        remedy = "its parameters()"
    elif isinstance(variables, collections.abc.Mapping):
        remedy = "its values, in a list"
    elif hasattr(variables, "dtype"):
        remedy = "[variable]"
    elif not isinstance(variables, collections.abc.Iterable):
        remedy = "model.trainable_variables or module.parameters()"
    if remedy is not None:
        kind = "a pytree of arrays" if on_jax else "a list of variables"
        raise TypeError(f"variables must be {kind}: got {type(variables).__name__}. Give {remedy}.")


def _require_variable(leaf, on_jax):
    if on_jax:
        kind, remedy = "arrays", "a pytree of them"
        if isinstance(leaf, keras.Variable):
            remedy = "their values: [v.value for v in model.trainable_variables]"
        elif hasattr(leaf, "shape") or isinstance(leaf, numbers.Number):
            return
    else:
        kind, remedy = "variables", "model.trainable_variables or module.parameters()"
        if framework_of(leaf) is not None and hasattr(leaf, "shape"):
            return
        if isinstance(leaf, keras.Variable):
            return
    raise TypeError(f"variables must hold {kind}: got {type(leaf).__name__}. Give {remedy}.")
