"""Arguments of the optimizers, checked: each function returns what may be used, or raises."""

import dataclasses
import math
import numbers

import keras
import numpy as np

from tensorflow_ranger.rules.clipping import AdaptiveGradientClipping
from tensorflow_ranger.rules.lookahead import Lookahead

REDUCTIONS = ("mean", "sum")


def count(name, value, advice, least=1):
    """Return `value` as an int >= `least`.

    Raises:
        ValueError: `value` is anything else.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}: got {shown(value)}. {advice}")
    return int(value)


def shown(value):
    """Return `value` as an error shows it: in full, or its class where that is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"an object of the class {type(value).__name__}"


def reduction(value):
    """Return `value` if it is "mean" or "sum".

    Raises:
        ValueError: `value` is anything else.
    """
    if value not in REDUCTIONS:
        raise ValueError(
            f"reduction must be one of {REDUCTIONS}: got {value!r}. "
            "It says what the loss does with the samples of a micro-batch."
        )
    return value


def accumulator_dtype(value):
    """Return the name of a floating dtype, or None.

    Raises:
        ValueError: `value` names a dtype that is not floating, or too narrow for sums.
    """
    if value is None:
        return None
    try:
        name = keras.backend.standardize_dtype(value)
    except ValueError:
        name = None  # Keras knows no such dtype
    if name is None or not keras.backend.is_float_dtype(name):
        raise ValueError(
            f"accumulator_dtype must be a floating dtype: got {value!r}. "
            'Use "float32", or None for the default.'
        )
    if name == "float16":
        raise ValueError(
            "accumulator_dtype must not be float16: a sum overflows at 65504. "
            'Use "bfloat16" for small sums, "float32", or None for the default.'
        )
    return name


def mass(value, reduction):
    """Return a micro-batch's mass: a float, or the tensor that was given.

    Args:
        value: Number or scalar tensor, or None for 1. A tensor's value is not looked at.
        reduction: "mean" or "sum".

    Raises:
        ValueError: The number is negative or not finite, the tensor is no scalar, or the
            reduction is "sum".
    """
    if value is None:
        return 1.0
    if reduction == "sum":
        raise ValueError(
            f'mass has no meaning with reduction="sum": got mass={value}. A sum is not divided; '
            'leave mass out, or give mean gradients and reduction="mean".'
        )
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if not isinstance(value, numbers.Real):
        if tuple(value.shape) != ():
            raise ValueError(
                f"mass must be a scalar: got shape {tuple(value.shape)}. Sum it first."
            )
        return value
    if not math.isfinite(value) or value < 0:
        raise ValueError(
            f"mass must be a finite number >= 0: got {value}. It is what the micro-batch's "
            "mean divided by, such as its number of samples."
        )
    return float(value)


def gradients(grads, variables):
    """Return `grads` and `variables` as lists of one length.

    Raises:
        TypeError: `grads` holds variables.
        ValueError: Their numbers differ, a variable comes twice, or none has a gradient.
    """
    grads, variables = list(grads), list(variables)
    if any(isinstance(gradient, keras.Variable) for gradient in grads):
        raise TypeError(
            "grads must hold gradients: got a keras.Variable. Give the gradients first: "
            "apply(grads, trainable_variables)."
        )
    if len(grads) != len(variables):
        raise ValueError(
            f"grads must hold one gradient per variable: got {len(grads)} gradients for "
            f"{len(variables)} variables. Use None where there is no gradient."
        )
    if len({id(variable) for variable in variables}) < len(variables):
        raise ValueError(
            "A variable was given twice, with one gradient each. Add the gradients first, and give "
            "each variable once."
        )
    if all(gradient is None for gradient in grads):
        raise ValueError(
            "No gradients provided for any variable: got only None. Check that the loss "
            "depends on the model's trainable variables."
        )
    return grads, variables


def trained(variables):
    """Return the list of variables that an optimizer is to train.

    Raises:
        TypeError: One is neither Keras' nor TensorFlow's own.
    """
    variables = list(variables)
    for variable in variables:
        if not (isinstance(variable, keras.Variable) or hasattr(variable, "assign")):
            raise TypeError(
                "A Keras optimizer trains variables of Keras, such as model.trainable_variables: "
                f"got {type(variable).__name__}. Give the gradients first, and then the variables. "
                "A PyTorch module is trained by PyTorch's optimizer, and accumulate_gradients in "
                "your loop."
            )
    return variables


def state(name, values, expected):
    """Check that `values` holds one tensor for each of the `expected` variables.

    Raises:
        ValueError: The numbers differ.
    """
    if len(values) != len(expected):
        raise ValueError(
            f"{name} must hold {len(expected)} tensors, one for each variable the optimizer was "
            f"built with: got {len(values)}."
        )


def fraction(name, value):
    """Return `value` as a float in [0, 1).

    Raises:
        ValueError: `value` is anything else.
    """
    if not 0.0 <= _number(value) < 1.0:
        raise ValueError(
            f"{name} must be a number in [0, 1): got {value!r}. It is the share of a moving "
            "average that stays."
        )
    return float(value)


def positive(name, value):
    """Return `value` as a finite float > 0.

    Raises:
        ValueError: `value` is anything else.
    """
    if not 0.0 < _number(value) < math.inf:
        raise ValueError(f"{name} must be a finite number > 0: got {value!r}. Use a small one.")
    return float(value)


def not_negative(name, value):
    """Return `value` as a finite float >= 0.

    Raises:
        ValueError: `value` is anything else.
    """
    if not 0.0 <= _number(value) < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0: got {value!r}. Use 0 for none.")
    return float(value)


def lookahead(value):
    """Return a `Lookahead` of one, of its config, or None of None.

    Raises:
        TypeError: `value` is anything else.
    """
    return _rule("lookahead", value, Lookahead)


def adaptive_clipping(value):
    """Return an `AdaptiveGradientClipping` of one, of its config, or None of None.

    Raises:
        TypeError: `value` is anything else.
    """
    return _rule("adaptive_clipping", value, AdaptiveGradientClipping)


def evaluate_slow_weights(value, lookahead):
    """Return `value` as a bool.

    Raises:
        ValueError: There are no slow weights.
    """
    if value and lookahead is None:
        raise ValueError(
            "evaluate_slow_weights needs slow weights: got lookahead=None. Use "
            "lookahead=Lookahead()."
        )
    return bool(value)


def config_of(rule):
    """Return the arguments of a rule as a dict, or None of None."""
    return None if rule is None else dataclasses.asdict(rule)


def _number(value):
    """Return `value` as a float, NaN if it is no number."""
    return float(value) if isinstance(value, numbers.Real) else math.nan


def _rule(name, value, cls):
    if isinstance(value, dict):
        return cls(**value)
    if value is not None and not isinstance(value, cls):
        raise TypeError(
            f"{name} must be a {cls.__name__} or None: got {value!r}. Use "
            f"tensorflow_ranger.{cls.__name__}()."
        )
    return value
