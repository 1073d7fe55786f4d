"""What must be a Keras model."""

import keras


def require_model(value, function):
    """Check that `value`, the first argument of `function`, is a Keras model.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, keras.Model):
        return
    got = type(value).__name__
    if isinstance(value, type):
        got, remedy = f"the class {value.__name__}", "Make a model of it first."
    elif isinstance(value, keras.Layer):
        remedy = "Put the layer into keras.Sequential."
    elif callable(value):
        remedy = "For a custom training loop use accumulate_gradients."
    else:
        remedy = f"Give the model first: {function}(model, ...)."
    raise TypeError(f"{function} needs a keras.Model as its first argument: got {got}. {remedy}")
